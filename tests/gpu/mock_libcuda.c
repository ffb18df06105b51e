// What tests/gpu/card.py calls besides what ../runtime/mock_libcuda.c has, by the prototypes and
// structures of CUDA's own header. Memory is real; a launch adds 1 to the first word of its first
// argument.
#include <cuda.h>
#include <stdlib.h>
#include <string.h>

int record(const char* name, const char* format, ...);

CUresult cuDeviceGetName(char* name, int length, CUdevice device) {
  strncpy(name, "A card of paper", (size_t)length);
  return record("cuDeviceGetName", "%d", device);
}
CUresult cuDriverGetVersion(int* version) {
  *version = 13020;
  return CUDA_SUCCESS;
}
CUresult cuCtxSetCurrent(CUcontext context) { return record("cuCtxSetCurrent", "%d", !!context); }
CUresult cuCtxSynchronize(void) { return record("cuCtxSynchronize", ""); }

CUresult cuMemAlloc_v2(CUdeviceptr* address, size_t bytes) {
  *address = (CUdeviceptr)malloc(bytes);
  return record("cuMemAlloc", "%zu", bytes);
}
CUresult cuMemFree_v2(CUdeviceptr address) {
  free((void*)address);
  return record("cuMemFree", "");
}
CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void* from, size_t bytes) {
  memcpy((void*)to, from, bytes);
  return record("cuMemcpyHtoD", "%zu", bytes);
}
CUresult cuMemcpyDtoH_v2(void* to, CUdeviceptr from, size_t bytes) {
  memcpy(to, (void*)from, bytes);
  return record("cuMemcpyDtoH", "%zu", bytes);
}

CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void** arguments,
                          void** extra) {
  unsigned cluster[3] = {1, 1, 1};
  int cooperative = 0, overlap = 0;
  for (unsigned i = 0; i < config->numAttrs; ++i) {
    const CUlaunchAttributeValue* value = &config->attrs[i].value;
    switch (config->attrs[i].id) {
      case CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION:
        memcpy(cluster, &value->clusterDim, sizeof cluster);
        break;
      case CU_LAUNCH_ATTRIBUTE_COOPERATIVE: cooperative = value->cooperative; break;
      case CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION:
        overlap = value->programmaticStreamSerializationAllowed;
        break;
      default: return record("unexpected launch attribute", "%d", config->attrs[i].id);
    }
  }
  ++**(int**)arguments[0];
  return record("cuLaunchKernelEx",
                "%d grid %u %u %u block %u %u %u smem %u stream %p cluster %u %u %u cooperative %d "
                "overlap %d extra %p",
                !!function, config->gridDimX, config->gridDimY, config->gridDimZ, config->blockDimX,
                config->blockDimY, config->blockDimZ, config->sharedMemBytes,
                (void*)config->hStream, cluster[0], cluster[1], cluster[2], cooperative,
                overlap, (void*)extra);
}

// The map's 128 bytes hold a mark and the address of the tensor.
static void mark(CUtensorMap* map, void* address) {
  map->opaque[0] = 0x6d6170;
  map->opaque[1] = (cuuint64_t)address;
}

CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank,
                                void* address, const cuuint64_t* extents,
                                const cuuint64_t* strides, const cuuint32_t* box,
                                const cuuint32_t* steps, CUtensorMapInterleave interleave,
                                CUtensorMapSwizzle swizzle, CUtensorMapL2promotion l2,
                                CUtensorMapFloatOOBfill fill) {
  mark(map, address);
  const cuuint32_t last = rank - 1;
  return record("cuTensorMapEncodeTiled",
                "aligned %d type %d rank %u extents %lu..%lu strides %lu..%lu box %u..%u steps "
                "%u..%u how %d %d %d %d",
                (cuuint64_t)map % 64 == 0, type, rank, extents[0], extents[last],
                strides[0], strides[last - 1], box[0], box[last], steps[0], steps[last],
                interleave, swizzle, l2, fill);
}
CUresult cuTensorMapEncodeIm2col(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank,
                                 void* address, const cuuint64_t* extents,
                                 const cuuint64_t* strides, const int* lower, const int* upper,
                                 cuuint32_t channels, cuuint32_t pixels, const cuuint32_t* steps,
                                 CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                 CUtensorMapL2promotion l2, CUtensorMapFloatOOBfill fill) {
  mark(map, address);
  const cuuint32_t last = rank - 1;
  return record("cuTensorMapEncodeIm2col",
                "aligned %d type %d rank %u extents %lu..%lu strides %lu..%lu lower %d %d upper %d "
                "%d channels %u pixels %u steps %u..%u how %d %d %d %d",
                (cuuint64_t)map % 64 == 0, type, rank, extents[0], extents[last],
                strides[0], strides[last - 1], lower[0], lower[1], upper[0], upper[1], channels,
                pixels, steps[0], steps[last], interleave, swizzle, l2, fill);
}
