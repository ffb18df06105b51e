#pragma once
#include "vgpu/matrix.h"
