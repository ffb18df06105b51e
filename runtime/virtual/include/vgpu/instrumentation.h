// The checked build compiles kernels with -fsanitize=thread and answers the calls the compiler puts
// before every load and store itself; libtsan is not involved. Hidden, so that no other library of
// the process ever sees these names.
#pragma once
#include "vgpu/runtime.h"

#define VGPU_HOOK extern "C" __attribute__((visibility("hidden"), used)) VGPU_LEAF

#define VGPU_ACCESS(SIZE)                                                                   \
  VGPU_HOOK void vgpu_read##SIZE(void* p) __asm__("__tsan_read" #SIZE);                     \
  VGPU_HOOK void vgpu_read##SIZE(void* p) { vgpu_check(p, SIZE, false, true); }             \
  VGPU_HOOK void vgpu_write##SIZE(void* p) __asm__("__tsan_write" #SIZE);                   \
  VGPU_HOOK void vgpu_write##SIZE(void* p) { vgpu_check(p, SIZE, true, true); }
VGPU_ACCESS(1)
VGPU_ACCESS(2)
VGPU_ACCESS(4)
VGPU_ACCESS(8)
VGPU_ACCESS(16)
#undef VGPU_ACCESS

// A volatile access is what a thread polls or publishes with: no race with others of its kind.
#define VGPU_VOLATILE(SIZE)                                                                 \
  VGPU_HOOK void vgpu_volatile_read##SIZE(void* p) __asm__("__tsan_volatile_read" #SIZE);   \
  VGPU_HOOK void vgpu_volatile_read##SIZE(void* p) {                                        \
    vgpu_check_atomic(p, SIZE, true, false, __ATOMIC_RELAXED);                                    \
  }                                                                                         \
  VGPU_HOOK void vgpu_volatile_write##SIZE(void* p) __asm__("__tsan_volatile_write" #SIZE); \
  VGPU_HOOK void vgpu_volatile_write##SIZE(void* p) {                                       \
    vgpu_check_atomic(p, SIZE, false, true, __ATOMIC_RELAXED);                                     \
  }
VGPU_VOLATILE(1)
VGPU_VOLATILE(2)
VGPU_VOLATILE(4)
VGPU_VOLATILE(8)
VGPU_VOLATILE(16)
#undef VGPU_VOLATILE

#define VGPU_UNALIGNED(SIZE)                                                                \
  VGPU_HOOK void vgpu_unaligned_read##SIZE(void* p) __asm__("__tsan_unaligned_read" #SIZE); \
  VGPU_HOOK void vgpu_unaligned_read##SIZE(void* p) { vgpu_check(p, SIZE, false, false); }  \
  VGPU_HOOK void vgpu_unaligned_write##SIZE(void* p) __asm__("__tsan_unaligned_write" #SIZE); \
  VGPU_HOOK void vgpu_unaligned_write##SIZE(void* p) { vgpu_check(p, SIZE, true, false); }
VGPU_UNALIGNED(2)
VGPU_UNALIGNED(4)
VGPU_UNALIGNED(8)
VGPU_UNALIGNED(16)
#undef VGPU_UNALIGNED

VGPU_HOOK void vgpu_read_range(void* p, size_t n) __asm__("__tsan_read_range");
VGPU_HOOK void vgpu_read_range(void* p, size_t n) {
  vgpu_check(p, static_cast<uint32_t>(n), false, false);
}
VGPU_HOOK void vgpu_write_range(void* p, size_t n) __asm__("__tsan_write_range");
VGPU_HOOK void vgpu_write_range(void* p, size_t n) {
  vgpu_check(p, static_cast<uint32_t>(n), true, false);
}
VGPU_HOOK void vgpu_func_entry(void*) __asm__("__tsan_func_entry");
VGPU_HOOK void vgpu_func_entry(void*) {}
VGPU_HOOK void vgpu_func_exit() __asm__("__tsan_func_exit");
VGPU_HOOK void vgpu_func_exit() {}
VGPU_HOOK void vgpu_tsan_init() __asm__("__tsan_init");
VGPU_HOOK void vgpu_tsan_init() {}

// -fsanitize=bounds,alignment: an index outside an array whose size the compiler knows (a local
// one, or static shared memory), and a vector read in parts each of which is aligned.
struct VgpuSourcePlace {
  const char* file;
  uint32_t line, column;
};
struct VgpuArrayUse {
  VgpuSourcePlace place;
  const struct VgpuType {
    uint16_t kind, info;
    char name[1];
  } * array, *index;
};
struct VgpuPointerUse {
  VgpuSourcePlace place;
  const VgpuArrayUse::VgpuType* type;
  unsigned char log_alignment, kind;
};
VGPU_HOOK void vgpu_bounds(VgpuArrayUse* use, uintptr_t index)
    __asm__("__ubsan_handle_out_of_bounds");
VGPU_HOOK void vgpu_bounds(VgpuArrayUse* use, uintptr_t index) {
  vgpu_fail("out of bounds: index %td of an array of type %s", static_cast<ptrdiff_t>(index),
            use->array->name);
}
VGPU_HOOK void vgpu_alignment(VgpuPointerUse* use, uintptr_t at)
    __asm__("__ubsan_handle_type_mismatch_v1");
VGPU_HOOK void vgpu_alignment(VgpuPointerUse* use, uintptr_t at) {
  vgpu_fail("misaligned: access of type %s at %#zx", use->type->name, static_cast<size_t>(at));
}

// -fsanitize=integer-divide-by-zero: not every machine traps.
VGPU_HOOK void vgpu_division(void*, uintptr_t, uintptr_t)
    __asm__("__ubsan_handle_divrem_overflow");
VGPU_HOOK void vgpu_division(void*, uintptr_t, uintptr_t) {
  vgpu_fail("integer division by zero or overflow");
}

#undef VGPU_HOOK
