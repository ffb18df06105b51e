#pragma once
#include "vgpu/scan.h"
