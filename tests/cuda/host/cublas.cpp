// A libcublas for machines without a GPU: the functions that examples/cuda/cublas.hpp loads, by
// their definition (columns first), in the order of the mock driver's streams.

#include "cuda_runtime.h"

#include "cuda_bf16.h"
#include "library_types.h"

namespace {

cudaStream_t stream = nullptr;  // of the one handle that there is

float get(const void* data, cudaDataType type, std::size_t at) {
  return type == CUDA_R_32F ? static_cast<const float*>(data)[at]
                            : __bfloat162float(static_cast<const __nv_bfloat16*>(data)[at]);
}

void set(void* data, cudaDataType type, std::size_t at, float value) {
  if (type == CUDA_R_32F) {
    static_cast<float*>(data)[at] = value;
  } else {
    static_cast<__nv_bfloat16*>(data)[at] = __float2bfloat16(value);
  }
}

struct Product {
  bool transpose_a, transpose_b;
  int m, n, k;
  float alpha, beta;
  cudaDataType a_type, b_type, c_type;
  int lda, ldb, ldc;

  void run(const void* a, const void* b, void* c) const {
    const auto at = [](int row, int column, int ld) {
      return static_cast<std::size_t>(row) +
             static_cast<std::size_t>(column) * static_cast<std::size_t>(ld);
    };
    for (int j = 0; j < n; ++j) {
      for (int i = 0; i < m; ++i) {
        float sum = 0;
        for (int p = 0; p < k; ++p) {
          sum += get(a, a_type, transpose_a ? at(p, i, lda) : at(i, p, lda)) *
                 get(b, b_type, transpose_b ? at(j, p, ldb) : at(p, j, ldb));
        }
        // With a factor of zero, what is there is not read.
        const float old = beta == 0 ? 0 : beta * get(c, c_type, at(i, j, ldc));
        set(c, c_type, at(i, j, ldc), alpha * sum + old);
      }
    }
  }

  // Whether leading dimensions and types are such that the real one would take them.
  bool valid() const {
    return lda >= (transpose_a ? k : m) && ldb >= (transpose_b ? n : k) && ldc >= m &&
           a_type == b_type && (c_type == a_type || c_type == CUDA_R_32F);
  }
};

constexpr int invalid_value = 7;

Product product(int op_a, int op_b, int m, int n, int k, const void* alpha, cudaDataType a_type,
                int lda, cudaDataType b_type, int ldb, const void* beta, cudaDataType c_type,
                int ldc) {
  return {op_a == 1,
          op_b == 1,
          m,
          n,
          k,
          *static_cast<const float*>(alpha),
          *static_cast<const float*>(beta),
          a_type,
          b_type,
          c_type,
          lda,
          ldb,
          ldc};
}

}  // namespace

extern "C" {

int cublasCreate_v2(void** handle) {
  *handle = &stream;
  return 0;
}
int cublasDestroy_v2(void*) { return 0; }
int cublasSetStream_v2(void*, cudaStream_t to) {
  stream = to;
  return 0;
}
int cublasSetWorkspace_v2(void*, void*, std::size_t) { return 0; }

int cublasGemmEx(void*, int op_a, int op_b, int m, int n, int k, const void* alpha, const void* a,
                 cudaDataType a_type, int lda, const void* b, cudaDataType b_type, int ldb,
                 const void* beta, void* c, cudaDataType c_type, int ldc, int, int) {
  const Product made =
      product(op_a, op_b, m, n, k, alpha, a_type, lda, b_type, ldb, beta, c_type, ldc);
  if (!made.valid()) {
    return invalid_value;
  }
  shim::enqueue(stream, [=] { made.run(a, b, c); });
  return 0;
}

int cublasGemmBatchedEx(void*, int op_a, int op_b, int m, int n, int k, const void* alpha,
                        const void* const* a, cudaDataType a_type, int lda, const void* const* b,
                        cudaDataType b_type, int ldb, const void* beta, void* const* c,
                        cudaDataType c_type, int ldc, int count, int, int) {
  const Product made =
      product(op_a, op_b, m, n, k, alpha, a_type, lda, b_type, ldb, beta, c_type, ldc);
  if (!made.valid()) {
    return invalid_value;
  }
  shim::enqueue(stream, [=] {
    for (int i = 0; i < count; ++i) {
      made.run(a[i], b[i], c[i]);
    }
  });
  return 0;
}

}  // extern "C"
