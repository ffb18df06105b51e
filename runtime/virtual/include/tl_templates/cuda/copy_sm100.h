#pragma once
#include "vgpu/async.h"
#include "vgpu/tma.h"
