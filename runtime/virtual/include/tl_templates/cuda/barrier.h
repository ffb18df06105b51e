#pragma once
#include "vgpu/barrier.h"
#include "vgpu/mbarrier.h"
