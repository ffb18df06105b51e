#pragma once
#include "vgpu/numbers.h"
