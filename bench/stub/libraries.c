/* The CUDA driver as Triton's launcher calls it, and the vendor's matrix products. */
#include <stdlib.h>
#include <string.h>

#include "stub.h"

/* The driver. Attributes of a device have the runtime's numbers. */
int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *v) { *v = 13000; return 0; }
int cuDeviceGetCount(int *n) { *n = 1; return 0; }
int cuDeviceGet(int *d, int number) { *d = 0; return 0; }
int cuDeviceGetAttribute(int *v, int a, int d) { *v = stub_attribute(a); return 0; }
int cuDevicePrimaryCtxGetState(int d, unsigned *flags, int *active) { *flags = 0, *active = 1; return 0; }
int cuDevicePrimaryCtxRetain(void **c, int d) { *c = (void *)16; return 0; }
int cuCtxGetCurrent(void **c) { *c = (void *)16; return 0; }
int cuCtxGetDevice(int *d) { *d = 0; return 0; }
int cuCtxSetCurrent(void *c) { return 0; }
int cuCtxGetLimit(size_t *v, int limit) { *v = 0; return 0; }
int cuCtxSetLimit(int limit, size_t v) { return 0; }
int cuGetErrorString(int e, const char **s) { *s = "the CUDA stub refuses this"; return 0; }
int cuModuleLoadData(void **m, const void *data) { *m = (void *)32; return 0; }
int cuModuleGetFunction(void **f, void *m, const char *name) { *f = (void *)48; return 0; }
int cuModuleUnload(void *m) { return 0; }
int cuFuncGetAttribute(int *v, int a, void *f) { *v = a == 0 ? 1024 : 0; return 0; }
int cuFuncSetAttribute(void *f, int a, int v) { return 0; }
int cuFuncSetCacheConfig(void *f, int c) { return 0; }
int cuOccupancyMaxActiveClusters(int *n, void *f, void *c) { *n = 1; return 0; }
int cuPointerGetAttribute(void *v, int a, unsigned long long p) { *(unsigned long long *)v = p; return 0; }
int cuTensorMapEncodeTiled(void) { return 0; }
int cuTensorMapEncodeIm2col(void) { return 0; }
int cuLaunchKernelEx(void *config, void *f, void **params, void **extra) { stub_did(STUB_LAUNCH); return 0; }
int cuLaunchKernel(void) { stub_did(STUB_LAUNCH); return 0; }
int cuLaunchCooperativeKernel(void) { stub_did(STUB_LAUNCH); return 0; }
int cuLinkAddData_v2(void) { return 1; }
int cuLinkComplete(void) { return 1; }
int cuLinkCreate_v2(void) { return 1; }
int cuModuleLoad(void) { return 1; }
int cuModuleLoadDataEx(void) { return 1; }
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *n) { *n = 2; return 0; }

/* Matrix products. */
#define PRODUCT(name) int name(void) { stub_did(STUB_LAUNCH); return 0; }
#define NOTHING(name) int name(void) { return 0; }
#define MAKES(name) int name(void **h) { *h = calloc(1, 64); return 0; }
#define FREES(name) int name(void *h) { free(h); return 0; }
PRODUCT(cublasGemmEx) PRODUCT(cublasGemmStridedBatchedEx) PRODUCT(cublasSgemmEx)
PRODUCT(cublasSgemm_v2) PRODUCT(cublasSgemmStridedBatched) PRODUCT(cublasSgemv_v2)
PRODUCT(cublasDgemm_v2) PRODUCT(cublasDgemmStridedBatched) PRODUCT(cublasDgemv_v2)
PRODUCT(cublasSdot_v2) PRODUCT(cublasDotEx) PRODUCT(cublasLtMatmul)
NOTHING(cublasSetStream_v2) NOTHING(cublasSetWorkspace_v2) NOTHING(cublasSetMathMode)
NOTHING(cublasSetPointerMode_v2) NOTHING(cublasSetSmCountTarget)
NOTHING(cublasLtMatmulDescSetAttribute) NOTHING(cublasLtMatrixLayoutSetAttribute)
NOTHING(cublasLtMatmulPreferenceSetAttribute)
MAKES(cublasCreate_v2) MAKES(cublasLtCreate) MAKES(cublasLtMatmulDescCreate)
MAKES(cublasLtMatrixLayoutCreate) MAKES(cublasLtMatmulPreferenceCreate)
FREES(cublasDestroy_v2) FREES(cublasLtMatmulDescDestroy) FREES(cublasLtMatrixLayoutDestroy)
FREES(cublasLtMatmulPreferenceDestroy)
int cublasGetMathMode(void *h, int *mode) { *mode = 0; return 0; }
int cublasGetPointerMode_v2(void *h, int *mode) { *mode = 0; return 0; }
int cublasLtMatmulAlgoGetHeuristic(void *h, void *d, void *a, void *b, void *c, void *e, void *preference, int wanted,
                                   void *results, int *found) {
  memset(results, 0, 64);
  *found = 1;
  return 0;
}
