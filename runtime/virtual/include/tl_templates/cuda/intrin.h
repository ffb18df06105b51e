#pragma once
#include "vgpu/warp.h"
