// Matrix products by cuBLAS, of which six functions are loaded when the program starts.
//
// They are declared here rather than in cublas_v2.h, so that the trainer compiles where there is a
// CUDA compiler but not the 500 MB of cuBLAS. Names, numbers and arguments are those of
// cublas_api.h of CUDA 12 and 13.

#pragma once

#include <cuda_runtime.h>
#include <dlfcn.h>
#include <library_types.h>

#include <stdexcept>
#include <string>

#include "cuda.hpp"

namespace gpu {

template <class T>
constexpr cudaDataType cuda_type = CUDA_R_32F;
template <>
constexpr cudaDataType cuda_type<__nv_bfloat16> = CUDA_R_16BF;

// A row-major matrix whose rows are `stride` elements apart; `transposed`: to be read so.
template <class Pointer>
struct matrix {
  Pointer data;
  int stride;
  bool transposed = false;
};

class cublas {
 public:
  // All products go to the stream. The workspace is the caller's and fixed, so that a product has
  // the same bits whether it is captured or not.
  cublas(cudaStream_t stream, const memory& workspace) {
    check(create_(&handle_), "cublasCreate");
    check(set_stream_(handle_, stream), "cublasSetStream");
    check(set_workspace_(handle_, workspace.data(), static_cast<std::size_t>(workspace.bytes())),
          "cublasSetWorkspace");
  }
  ~cublas() { destroy_(handle_); }
  cublas(const cublas&) = delete;
  cublas& operator=(const cublas&) = delete;

  // c (m, n) = a (m, k) b (k, n), or c += where `add`; sums are in f32.
  template <class A, class C>
  void multiply(int m, int n, int k, matrix<const A*> a, matrix<const A*> b, C* c, int c_stride,
                bool add = false) const {
    const float one = 1, beta = add ? 1 : 0;
    // cuBLAS counts columns first: what it calls cᵀ = bᵀ aᵀ is c = a b here.
    check(gemm_(handle_, b.transposed, a.transposed, n, m, k, &one, b.data, cuda_type<A>, b.stride,
                a.data, cuda_type<A>, a.stride, &beta, c, cuda_type<C>, c_stride, compute_f32,
                default_algorithm),
          "cublasGemmEx");
  }

  // The same for `count` triples of matrices, whose addresses are in device memory.
  template <class A, class C>
  void multiply_each(int count, int m, int n, int k, matrix<const A* const*> a,
                     matrix<const A* const*> b, C* const* c, int c_stride) const {
    const float one = 1, zero = 0;
    const auto untyped = [](const A* const* list) {
      return reinterpret_cast<const void* const*>(list);
    };
    check(gemm_batched_(handle_, b.transposed, a.transposed, n, m, k, &one, untyped(b.data),
                        cuda_type<A>, b.stride, untyped(a.data), cuda_type<A>, a.stride, &zero,
                        reinterpret_cast<void* const*>(c), cuda_type<C>, c_stride, count,
                        compute_f32, default_algorithm),
          "cublasGemmBatchedEx");
  }

 private:
  using handle = void*;
  static constexpr int compute_f32 = 68;        // CUBLAS_COMPUTE_32F
  static constexpr int default_algorithm = -1;  // CUBLAS_GEMM_DEFAULT

  static void check(int status, const char* function) {
    if (status != 0) {
      throw std::runtime_error(std::string(function) + ": cuBLAS status " + std::to_string(status));
    }
  }

  static void* library() {
    static void* const found = [] {
      for (const char* name : {"libcublas.so.13", "libcublas.so.12", "libcublas.so"}) {
        if (void* loaded = dlopen(name, RTLD_NOW)) {
          return loaded;
        }
      }
      throw std::runtime_error(std::string("cuBLAS is not on the library path: ") + dlerror());
    }();
    return found;
  }

  template <class F>
  static F* load(const char* name) {
    void* function = dlsym(library(), name);
    if (function == nullptr) {
      throw std::runtime_error(std::string("cuBLAS has no ") + name);
    }
    return reinterpret_cast<F*>(function);
  }

  handle handle_ = nullptr;
  int (*create_)(handle*) = load<int(handle*)>("cublasCreate_v2");
  int (*destroy_)(handle) = load<int(handle)>("cublasDestroy_v2");
  int (*set_stream_)(handle, cudaStream_t) = load<int(handle, cudaStream_t)>("cublasSetStream_v2");
  int (*set_workspace_)(handle, void*, std::size_t) =
      load<int(handle, void*, std::size_t)>("cublasSetWorkspace_v2");

  // Operations are 0 (as it is) and 1 (transposed).
  using gemm = int(handle, int op_a, int op_b, int m, int n, int k, const void* alpha,
                   const void* a, cudaDataType, int lda, const void* b, cudaDataType, int ldb,
                   const void* beta, void* c, cudaDataType, int ldc, int compute, int algorithm);
  using gemm_batched = int(handle, int op_a, int op_b, int m, int n, int k, const void* alpha,
                           const void* const* a, cudaDataType, int lda, const void* const* b,
                           cudaDataType, int ldb, const void* beta, void* const* c, cudaDataType,
                           int ldc, int count, int compute, int algorithm);
  gemm* gemm_ = load<gemm>("cublasGemmEx");
  gemm_batched* gemm_batched_ = load<gemm_batched>("cublasGemmBatchedEx");
};

}  // namespace gpu
