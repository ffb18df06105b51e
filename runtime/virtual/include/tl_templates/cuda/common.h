#pragma once
#include "vgpu/all.h"
