// Every helper the virtual GPU models. What is not here does not compile.
#pragma once
#include <utility>

#include "vgpu/async.h"
#include "vgpu/atomic.h"
#include "vgpu/barrier.h"
#include "vgpu/cluster.h"
#include "vgpu/debug.h"
#include "vgpu/fp4.h"
#include "vgpu/fp8.h"
#include "vgpu/math.h"
#include "vgpu/matrix.h"
#include "vgpu/mbarrier.h"
#include "vgpu/mma.h"
#include "vgpu/packed.h"
#include "vgpu/reduce.h"
#include "vgpu/registers.h"
#include "vgpu/scan.h"
#include "vgpu/shared.h"
#include "vgpu/swizzle.h"
#include "vgpu/tma.h"
#include "vgpu/warp.h"
#include "vgpu/wgmma.h"
