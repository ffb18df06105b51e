#pragma once
#include "vgpu/async.h"
#include "vgpu/cluster.h"
#include "vgpu/tcgen05_data.h"
