#pragma once
#include "vgpu/reduce.h"
