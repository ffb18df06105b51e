// Calls norm/rmsnorm_unweighted of a bundle without Python: from_cpp LAUNCHERS CUBIN SYMBOL PLAN
//
// LAUNCHERS is the bundle's launchers.<platform>.so, CUBIN a file of the bundle, SYMBOL and PLAN what
// the manifest says of the specialization. Here memory is the host's and the driver is the null one,
// which launches nothing; on a GPU take "cuda_driver", kDLCUDA and pointers of the device.
#include <dlpack/dlpack.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

int main(int, char** argv) try {
  using tvm::ffi::Function;
  tvm::ffi::Module library = tvm::ffi::Module::LoadFromFile(argv[1]);
  std::ifstream file(argv[2], std::ios::binary);
  std::string cubin(std::istreambuf_iterator<char>(file), {});

  int64_t driver = library->GetFunction("null_driver").value()().cast<int64_t>();
  // plan, driver, device type and index, code and its size, whether to check elements of indices
  Function run = library->GetFunction(std::string("bind_") + argv[3])
                     .value()(std::atoll(argv[4]), driver, int64_t{kDLCPU}, 0,
                              reinterpret_cast<int64_t>(cubin.data()), int64_t(cubin.size()), true)
                     .cast<Function>();

  alignas(128) static uint16_t x[5 * 64], y[5 * 64];  // bfloat16
  int64_t shape[2] = {5, 64}, wrong[2] = {4, 64};
  DLTensor in{x, {kDLCPU, 0}, 2, {kDLBfloat, 16, 1}, shape, nullptr, 0}, out = in;
  out.data = y;
  run(&in, &out);
  std::puts("launched");
  out.shape = wrong;
  run(&in, &out);
} catch (const std::exception& error) {
  std::puts(error.what());
}
