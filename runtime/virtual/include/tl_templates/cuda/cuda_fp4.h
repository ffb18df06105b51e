#pragma once
#include "vgpu/fp4.h"
