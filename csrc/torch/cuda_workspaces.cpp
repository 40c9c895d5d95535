// The workspaces: whose they are, and until when. Layer: torch.
//
// Note [Workspaces]
// Launches that may overlap need workspaces of their own. On a stream they do not overlap: each
// stream has one. A graph may be replayed on any stream, beside whatever runs on the one it was
// captured on: what one capture puts on one stream has one, which CUDA gives back when the last of
// the graph is gone. A workspace is zeroed once, and every launch leaves it zeroed: nothing but the
// kernel is launched. It is no memory of PyTorch's allocator, which might take it from the pool of
// a graph that is being prepared.
//
// A graph may be instantiated several times. All instances share the workspace, as they share the
// graph's tensors, so two instances must not run at the same time. The last one gives back.
//
// CUDA does not tell when a stream is destroyed, nor when the last launch on it has ended. So a
// stream's workspace is never taken from it, and only the first kStreams streams of a device have
// one. On any later stream each call takes memory from PyTorch's allocator, which is made for
// memory of one stream, and zeroes the counter in it: one more launch, and no memory that stays.
#include "torch/cuda_workspaces.h"

#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>

#include <map>
#include <memory>
#include <mutex>
#include <tuple>
#include <type_traits>
#include <vector>

namespace actreg {
namespace {

// A device has at most 129 streams of PyTorch's own: 32 in the pool of each of 4 priorities, and
// the default one. 256 workspaces take 16 MB.
constexpr int kStreams = 256;

struct Key {
  c10::DeviceIndex device;
  unsigned long long stream, capture;  // by their ids; of no capture: 0

  friend bool operator<(const Key& a, const Key& b) {
    return std::tie(a.device, a.stream, a.capture) < std::tie(b.device, b.stream, b.capture);
  }
};

struct Workspaces {
  std::mutex making;  // held by who makes one; CUDA's thread, which gives back, waits for the other
  std::mutex mutex;
  std::map<Key, cuda::Workspace*> taken;
  std::map<c10::DeviceIndex, std::vector<cuda::Workspace*>> spare;
  std::map<c10::DeviceIndex, int> streams;  // that have one

  cuda::Workspace* find(const Key& key) {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = taken.find(key);
    return found == taken.end() ? nullptr : found->second;
  }
  cuda::Workspace* take_spare(const Key& key) {
    const std::lock_guard<std::mutex> lock(mutex);
    auto& workspaces = spare[key.device];
    if (workspaces.empty()) return nullptr;
    taken[key] = workspaces.back();
    workspaces.pop_back();
    if (!key.capture) ++streams[key.device];
    return taken[key];
  }
  bool has_place(const Key& key) {
    const std::lock_guard<std::mutex> lock(mutex);
    return key.capture || streams[key.device] < kStreams;
  }
  void add_spare(const Key& key, cuda::Workspace* workspace) {
    const std::lock_guard<std::mutex> lock(mutex);
    spare[key.device].push_back(workspace);
  }
  void give_back(const Key& key) {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = taken.find(key);
    spare[key.device].push_back(found->second);
    taken.erase(found);
  }
};
Workspaces& all() {
  static auto* workspaces = new Workspaces;  // outlive the CUDA runtime
  return *workspaces;
}

struct Free {
  void operator()(void* memory) const { (void)cudaFree(memory); }
};
struct Destroy {
  void operator()(cudaStream_t stream) const { (void)cudaStreamDestroy(stream); }
};

// Other streams, and this one, may be capturing: neither is touched.
cuda::Workspace* zeroed_workspace(bool is_capturing) {
  const c10::cuda::CUDAStreamCaptureModeGuard guard(cudaStreamCaptureModeRelaxed);
  void* memory = nullptr;
  if (cudaMalloc(&memory, sizeof(cuda::Workspace)) != cudaSuccess) {
    (void)cudaGetLastError();
    if (!is_capturing) c10::cuda::CUDACachingAllocator::emptyCache();  // it may hold all there is
    C10_CUDA_CHECK(cudaMalloc(&memory, sizeof(cuda::Workspace)));
  }
  std::unique_ptr<cuda::Workspace, Free> workspace(static_cast<cuda::Workspace*>(memory));
  cudaStream_t stream = nullptr;
  C10_CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  const std::unique_ptr<std::remove_pointer_t<cudaStream_t>, Destroy> owner(stream);
  C10_CUDA_CHECK(cudaMemsetAsync(&workspace->finished, 0, sizeof workspace->finished, stream));
  C10_CUDA_CHECK(cudaStreamSynchronize(stream));
  return workspace.release();
}

struct Delete {
  void operator()(void* memory) const { c10::cuda::CUDACachingAllocator::raw_delete(memory); }
};

// For the calling thread's next launch. The thread keeps the memory until it comes here again: by
// then the launch is on the stream, and the allocator orders the next use of the memory after it,
// as for any tensor.
cuda::Workspace* temporary_workspace(cudaStream_t stream) {
  thread_local std::unique_ptr<void, Delete> memory;
  memory.reset();
  memory.reset(
      c10::cuda::CUDACachingAllocator::raw_alloc_with_stream(sizeof(cuda::Workspace), stream));
  auto* workspace = static_cast<cuda::Workspace*>(memory.get());
  C10_CUDA_CHECK(cudaMemsetAsync(&workspace->finished, 0, sizeof workspace->finished, stream));
  return workspace;
}

// Called by CUDA, on a thread that must not call it.
void give_back(void* key_of_graph) {
  const std::unique_ptr<Key> key(static_cast<Key*>(key_of_graph));
  all().give_back(*key);
}

void give_back_with(cudaGraph_t graph, const Key& key) {
  cudaUserObject_t owner = nullptr;
  auto kept = std::make_unique<Key>(key);
  C10_CUDA_CHECK(
      cudaUserObjectCreate(&owner, kept.get(), give_back, 1, cudaUserObjectNoDestructorSync));
  (void)kept.release();
  const cudaError_t error = cudaGraphRetainUserObject(graph, owner, 1, cudaGraphUserObjectMove);
  if (error != cudaSuccess) (void)cudaUserObjectRelease(owner, 1);  // which gives back
  C10_CUDA_CHECK(error);
}

}  // namespace

cuda::Workspace* workspace_of(c10::DeviceIndex device, cudaStream_t stream) {
  // The handle of a stream may be another's once it is destroyed, or another for each thread.
  Key key{device, 0, 0};
  C10_CUDA_CHECK(cudaStreamGetId(stream, &key.stream));
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  cudaGraph_t graph = nullptr;
  C10_CUDA_CHECK(cudaStreamGetCaptureInfo(stream, &status, &key.capture, &graph));
  const bool is_capturing = status == cudaStreamCaptureStatusActive;
  if (!is_capturing) key.capture = 0;

  if (cuda::Workspace* found = all().find(key)) return found;
  {
    const std::lock_guard<std::mutex> lock(all().making);
    if (cuda::Workspace* found = all().find(key)) return found;  // another thread was faster
    if (all().has_place(key)) {
      cuda::Workspace* workspace = all().take_spare(key);
      if (!workspace) {
        all().add_spare(key, zeroed_workspace(is_capturing));
        workspace = all().take_spare(key);
      }
      if (is_capturing) give_back_with(graph, key);
      return workspace;
    }
  }
  return temporary_workspace(stream);
}

}  // namespace actreg
