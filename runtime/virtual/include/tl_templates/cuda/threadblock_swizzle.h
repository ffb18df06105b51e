#pragma once
#include "vgpu/swizzle.h"
