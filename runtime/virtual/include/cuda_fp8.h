#pragma once
#include "vgpu/fp8.h"
