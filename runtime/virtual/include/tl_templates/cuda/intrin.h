#pragma once
#include "vgpu/barrier.h"
#include "vgpu/registers.h"
#include "vgpu/warp.h"
