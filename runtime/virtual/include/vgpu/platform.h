// CUDA's language extensions as a host compiler must read them.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "vgpu/arch.h"

#if !defined(__GNUC__)
#error "the virtual GPU needs g++: its headers use GNU vector types and attributes"
#endif

// Kernels have a section of their own: a return address in it is a place in the CUDA text.
#define __global__ __attribute__((section("vgpu_kernels")))
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __cluster_dims__(...)
#define __align__(n) __attribute__((aligned(n)))
// A block runs on one OS thread, so a block's shared memory is that thread's.
#define __shared__ thread_local

#define TL_DEVICE inline

// Helpers check memory by hand; the compiler's instrumentation of the checked build must not see
// them, or a fragment gather would cost a call per element. A function keeps its exemption only as
// long as it is not inlined into an instrumented one: VGPU_RAW is for those kernels call, VGPU_LEAF
// for those that only VGPU_RAW functions call.
#define VGPU_LEAF __attribute__((no_sanitize_thread))
#if defined(VGPU_CHECKED)
#define VGPU_RAW __attribute__((no_sanitize_thread, noinline))
#else
#define VGPU_RAW
#endif
#define VGPU_API extern "C" __attribute__((visibility("default")))

// Before a short loop over registers: -O2 leaves it rolled and its arrays in memory.
#define VGPU_UNROLL _Pragma("GCC unroll 8")

namespace vgpu {

// One thread of the virtual GPU sees another's stores at once; a fence only keeps the compiler
// from moving them.
inline void compiler_fence() { __asm__ volatile("" ::: "memory"); }

}  // namespace vgpu
