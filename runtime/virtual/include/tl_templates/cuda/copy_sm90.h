#pragma once
#include "vgpu/async.h"
#include "vgpu/cluster.h"
