// Which architectures have a helper. A build for one (-DVGPU_ARCH=90 -DVGPU_ARCH_SPECIFIC=1
// -DVGPU_ARCH_NAME="sm_90a") refuses what it lacks by name; a build for none refuses nothing.
//
// Facts are ptxas's, "target ISA notes" of the PTX manual. Where TileLang's helper has another way
// on older architectures (256-bit accesses, f32x2, redux of floats, conversions), they have it.
#pragma once

#if !defined(VGPU_ARCH)
#define VGPU_ARCH 0
#define VGPU_ARCH_SPECIFIC 0
#define VGPU_ARCH_NAME "no architecture"
#endif
#define VGPU_FROM(NUMBER) (!VGPU_ARCH || VGPU_ARCH >= NUMBER)
#define VGPU_ONLY(NUMBER) (!VGPU_ARCH || (VGPU_ARCH == NUMBER && VGPU_ARCH_SPECIFIC))

#if __has_attribute(unavailable)
#define VGPU_REFUSED(WHERE) \
  __attribute__((unavailable(VGPU_ARCH_NAME " lacks it, it exists " WHERE)))
#else  // g++ 11; -Werror=deprecated-declarations makes it an error
#define VGPU_REFUSED(WHERE) \
  __attribute__((deprecated(VGPU_ARCH_NAME " lacks it, it exists " WHERE)))
#endif

#if VGPU_FROM(90)
#define VGPU_FROM_SM90
#else
#define VGPU_FROM_SM90 VGPU_REFUSED("from sm_90 on")
#endif
#if VGPU_FROM(100)
#define VGPU_FROM_SM100
#else
#define VGPU_FROM_SM100 VGPU_REFUSED("from sm_100 on")
#endif
#if VGPU_ONLY(90)
#define VGPU_ONLY_SM90A
#else
#define VGPU_ONLY_SM90A VGPU_REFUSED("on sm_90a only")
#endif
#if VGPU_ONLY(100)
#define VGPU_ONLY_SM100A
#else
#define VGPU_ONLY_SM100A VGPU_REFUSED("on sm_100a only")
#endif
#if VGPU_ONLY(120)
#define VGPU_ONLY_SM120A
#else
#define VGPU_ONLY_SM120A VGPU_REFUSED("on sm_120a only")
#endif
