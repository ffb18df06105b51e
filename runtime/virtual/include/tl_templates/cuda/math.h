#pragma once
#include "vgpu/math.h"
