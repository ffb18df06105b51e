#pragma once
#include "vgpu/conversions.h"
