/* The CUDA runtime as PyTorch calls it, without a device: memory is the host's, work is counted and
   not done. While a stream is captured, what a real capture forbids is noted as a fault. */
#define _GNU_SOURCE
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "stub.h"

static size_t last_handle = 0x1000;
static void *handle(void) { return (void *)(last_handle += 16); }

long stub_counts[STUB_KINDS];
static cudaStream_t capturing;
static __thread enum cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
static int is_capturing;
static unsigned long long capture_number;
static long nodes;
static char faults[1 << 14];

const char *stub_faults(void) { return faults; }
void stub_forget(void) {
  memset(stub_counts, 0, sizeof stub_counts);
  faults[0] = 0;
}
void stub_did(int kind) {
  stub_counts[kind]++;
  if (is_capturing) nodes++;
}
/* What a capture forbids on its own stream, and on the default one unless the thread asked for the
   relaxed mode, as PyTorch does around what it has to do beside a capture. */
static cudaError_t forbidden(int kind, const char *what, cudaStream_t s) {
  stub_counts[kind]++;
  if (!is_capturing) return cudaSuccess;
  if (s ? s != capturing : mode == cudaStreamCaptureModeRelaxed) return cudaSuccess;
  if (strlen(faults) + strlen(what) + 2 < sizeof faults) strcat(strcat(faults, what), "\n");
  return cudaErrorStreamCaptureUnsupported;
}

/* Memory. Ranges of pinned memory are remembered, for a pinned source is what a copy may read late. */
typedef struct { char *start; size_t size; int pinned; } Range;
static Range ranges[1 << 14];
static int range_count;
static void remember(void *start, size_t size, int pinned) {
  for (int i = 0; i < range_count; i++)
    if (!ranges[i].start) { ranges[i] = (Range){start, size, pinned}; return; }
  if (range_count < (int)(sizeof ranges / sizeof *ranges))
    ranges[range_count++] = (Range){start, size, pinned};
}
static Range *range_of(const void *p) {
  for (int i = 0; i < range_count; i++) {
    Range *r = &ranges[i];
    if (r->start && (char *)p >= r->start && (char *)p < r->start + r->size) return r;
  }
  return NULL;
}
static void *reserve(size_t size, int pinned) {
  void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) return NULL;
  remember(p, size, pinned);
  return p;
}
static cudaError_t release(void *p) {
  Range *r = p ? range_of(p) : NULL;
  if (r && r->start == p) {
    munmap(p, r->size);
    r->start = NULL;
  }
  return cudaSuccess;
}
cudaError_t cudaMalloc(void **p, size_t size) {
  stub_counts[STUB_ALLOCATION]++;
  *p = reserve(size, 0);
  return *p ? cudaSuccess : cudaErrorMemoryAllocation;
}
cudaError_t cudaFree(void *p) { return p ? release(p) : cudaSuccess; }
cudaError_t cudaHostAlloc(void **p, size_t size, unsigned flags) {
  *p = reserve(size, 1);
  return forbidden(STUB_ALLOCATION, "page-locked memory was allocated", NULL);
}
cudaError_t cudaFreeHost(void *p) { return release(p); }
cudaError_t cudaHostRegister(void *p, size_t size, unsigned flags) { return cudaSuccess; }
cudaError_t cudaHostUnregister(void *p) { return cudaSuccess; }
cudaError_t cudaMemGetInfo(size_t *f, size_t *t) { *f = *t = 80ull << 30; return cudaSuccess; }
cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p) {
  Range *r = range_of(p);
  memset(a, 0, sizeof *a);
  a->type = !r ? cudaMemoryTypeUnregistered : r->pinned ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
  a->devicePointer = (void *)p;
  return cudaSuccess;
}

/* Copies between host and device are done, so that indices and counters are what they should be. */
static cudaError_t copy(void *to, const void *from, size_t size, enum cudaMemcpyKind kind, cudaStream_t s) {
  int host = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToHost;
  if (host) {
    memcpy(to, from, size);
    return forbidden(STUB_COPY, kind == cudaMemcpyHostToDevice ? "a copy from the host" : "a copy to the host", s);
  }
  stub_did(STUB_LAUNCH);
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t n, enum cudaMemcpyKind kind) {
  return copy(to, from, n, kind, NULL);
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, enum cudaMemcpyKind kind, cudaStream_t s) {
  return copy(to, from, n, kind, s);
}
cudaError_t cudaMemset(void *p, int v, size_t n) { stub_did(STUB_LAUNCH); return cudaSuccess; }
cudaError_t cudaMemsetAsync(void *p, int v, size_t n, cudaStream_t s) { stub_did(STUB_LAUNCH); return cudaSuccess; }

/* The device. */
cudaError_t cudaGetDeviceCount(int *n) { *n = 1; return cudaSuccess; }
cudaError_t cudaGetDevice(int *d) { *d = 0; return cudaSuccess; }
cudaError_t cudaSetDevice(int d) { return cudaSuccess; }
cudaError_t cudaGetLastError(void) { return cudaSuccess; }
cudaError_t cudaPeekAtLastError(void) { return cudaSuccess; }
cudaError_t cudaDriverGetVersion(int *v) { *v = CUDART_VERSION; return cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int *v) { *v = CUDART_VERSION; return cudaSuccess; }
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int d) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, "stub of sm_90");
  p->totalGlobalMem = 80ull << 30, p->major = 9, p->multiProcessorCount = 132, p->warpSize = 32;
  p->maxThreadsPerBlock = 1024, p->maxThreadsPerMultiProcessor = 2048, p->sharedMemPerBlock = 49152;
  p->sharedMemPerBlockOptin = 232448, p->sharedMemPerMultiprocessor = 233472;
  p->regsPerBlock = p->regsPerMultiprocessor = 65536, p->l2CacheSize = 50 << 20;
  p->maxGridSize[0] = 2147483647, p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024, p->maxThreadsDim[2] = 64;
  return cudaSuccess;
}
int stub_attribute(int a) {
  switch (a) {
    case cudaDevAttrComputeCapabilityMajor: return 9;
    case cudaDevAttrMultiProcessorCount: return 132;
    case cudaDevAttrMaxThreadsPerBlock: return 1024;
    case cudaDevAttrWarpSize: return 32;
    case cudaDevAttrMaxSharedMemoryPerBlock: return 49152;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: return 232448;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: return 233472;
    case cudaDevAttrMaxRegistersPerBlock: return 65536;
    case cudaDevAttrMaxGridDimX: return 2147483647;
    default: return 0;
  }
}
cudaError_t cudaDeviceGetAttribute(int *v, enum cudaDeviceAttr a, int d) { *v = stub_attribute(a); return cudaSuccess; }
cudaError_t cudaDeviceGetStreamPriorityRange(int *low, int *high) { *low = 0, *high = -5; return cudaSuccess; }
cudaError_t cudaDeviceCanAccessPeer(int *can, int a, int b) { *can = 0; return cudaSuccess; }
cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *p, int d) { *p = handle(); return cudaSuccess; }
const char *cudaGetErrorString(cudaError_t e) { return "the CUDA stub refuses this"; }
const char *cudaGetErrorName(cudaError_t e) { return "cudaErrorStub"; }
static int fine(void) { return 0; }
cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **f, unsigned v, unsigned long long flags,
                                             enum cudaDriverEntryPointQueryResult *result) {
  Dl_info here;
  dladdr((void *)fine, &here);
  void *self = dlopen(here.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
  *f = self ? dlsym(self, name) : NULL;
  if (!*f) *f = (void *)fine;
  if (result) *result = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

/* Streams and events. */
cudaError_t cudaDeviceSynchronize(void) { return forbidden(STUB_SYNC, "the host waited for the device", NULL); }
cudaError_t cudaStreamSynchronize(cudaStream_t s) { return forbidden(STUB_SYNC, "the host waited for a stream", s); }
cudaError_t cudaEventSynchronize(cudaEvent_t e) { return forbidden(STUB_SYNC, "the host waited for an event", NULL); }
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned f, int p) { *s = handle(); return cudaSuccess; }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned f) { *s = handle(); return cudaSuccess; }
cudaError_t cudaStreamDestroy(cudaStream_t s) { return cudaSuccess; }
cudaError_t cudaStreamQuery(cudaStream_t s) { return cudaSuccess; }
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned f) { return cudaSuccess; }
cudaError_t cudaStreamGetPriority(cudaStream_t s, int *p) { *p = 0; return cudaSuccess; }
cudaError_t cudaEventCreate(cudaEvent_t *e) { *e = handle(); return cudaSuccess; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned f) { *e = handle(); return cudaSuccess; }
cudaError_t cudaEventDestroy(cudaEvent_t e) { return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) { return cudaSuccess; }
cudaError_t cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t s, unsigned f) { return cudaSuccess; }
cudaError_t cudaEventQuery(cudaEvent_t e) { return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b) { *ms = 0; return cudaSuccess; }

/* Graphs. */
cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode m) {
  capturing = s, is_capturing = 1, nodes = 0, capture_number++;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g) { is_capturing = 0, *g = handle(); return cudaSuccess; }
cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *c) {
  *c = is_capturing && s == capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t s, enum cudaStreamCaptureStatus *c, unsigned long long *id, cudaGraph_t *g,
                                     const cudaGraphNode_t **d, const cudaGraphEdgeData **e, size_t *n) {
  if (id) *id = capture_number;
  if (n) *n = 0;
  return cudaStreamIsCapturing(s, c);
}
cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *m) {
  enum cudaStreamCaptureMode before = mode;
  mode = *m, *m = before;
  return cudaSuccess;
}
cudaError_t cudaGraphGetNodes(cudaGraph_t g, cudaGraphNode_t *n, size_t *count) { *count = nodes; return cudaSuccess; }
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *e, cudaGraph_t g, unsigned long long f) { *e = handle(); return cudaSuccess; }
cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t s) { stub_counts[STUB_GRAPH]++; return cudaSuccess; }
cudaError_t cudaGraphDestroy(cudaGraph_t g) { return cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t g) { return cudaSuccess; }

/* Kernels. A device's code is never loaded. */
void **__cudaRegisterFatBinary(void *binary) { static void *one; return &one; }
void __cudaRegisterFatBinaryEnd(void **b) {}
void __cudaUnregisterFatBinary(void **b) {}
void __cudaRegisterFunction(void **b, const char *h, char *d, const char *n, int t, void *a, void *c, void *e, void *f, int *w) {}
void __cudaRegisterVar(void **b, char *h, char *d, const char *n, int e, size_t s, int c, int g) {}
char __cudaInitModule(void **b) { return 0; }
cudaError_t __cudaGetKernel(cudaKernel_t *k, const void *f) { *k = (cudaKernel_t)f; return cudaSuccess; }
static __thread struct { dim3 grid, block; size_t shared; void *stream; } pushed;
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, struct CUstream_st *stream) {
  pushed.grid = grid, pushed.block = block, pushed.shared = shared, pushed.stream = stream;
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
  *grid = pushed.grid, *block = pushed.block, *shared = pushed.shared, *(void **)stream = pushed.stream;
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t k, dim3 g, dim3 b, void **a, size_t n, cudaStream_t s) { stub_did(STUB_LAUNCH); return cudaSuccess; }
cudaError_t cudaLaunchKernel(const void *f, dim3 g, dim3 b, void **a, size_t n, cudaStream_t s) { stub_did(STUB_LAUNCH); return cudaSuccess; }
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *c, const void *f, void **a) { stub_did(STUB_LAUNCH); return cudaSuccess; }
cudaError_t cudaFuncSetAttribute(const void *f, enum cudaFuncAttribute a, int v) { return cudaSuccess; }
cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *a, const void *f) {
  memset(a, 0, sizeof *a);
  a->maxThreadsPerBlock = 1024, a->numRegs = 32, a->ptxVersion = a->binaryVersion = 90;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *f, int b, size_t s, unsigned g) { *n = 2; return cudaSuccess; }
