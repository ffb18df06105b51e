#pragma once
#include "vgpu/barrier.h"
#include "vgpu/cluster.h"
