// The workspaces: which launch uses which one, and when a workspace is free again. Layer: torch.
//
// Note [Workspaces]
// A workspace is the device memory in which the blocks of one launch add up their sums. Two
// launches that may overlap need two workspaces.
// - Launches on one stream do not overlap. So each stream has one workspace.
// - A captured graph may be replayed on any stream, while other launches run on the stream it was
//   captured on. So each stream of each capture has a workspace of its own. CUDA calls give_back
//   when the graph and all its instances are destroyed, and the workspace is free again.
// A workspace is zeroed once, when it is made, and every launch leaves it zeroed. So a call
// launches its kernel and nothing else. The memory does not come from PyTorch's allocator, because
// that might take it from the memory pool of a graph that is being captured.
//
// A graph may be instantiated several times. All its instances share one workspace, as they share
// the graph's tensors. So two instances of a graph must not run at the same time.
//
// CUDA does not tell when a stream is destroyed, nor when the last launch on it has ended. So a
// stream keeps its workspace for ever, and only the first kStreams streams of a device get one. On
// any other stream each call allocates a temporary workspace from PyTorch's allocator, which knows
// when memory of a stream may be used again. The call also zeroes the counter in this workspace,
// which costs one more launch per call.
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

// PyTorch itself makes at most 129 streams on a device: 32 in the pool of each of 4 priorities, and
// the default stream. 256 workspaces take 16 MB.
constexpr int kStreams = 256;

struct Key {
  c10::DeviceIndex device;
  unsigned long long stream, capture;  // ids; capture is 0 outside of a capture

  friend bool operator<(const Key& a, const Key& b) {
    return std::tie(a.device, a.stream, a.capture) < std::tie(b.device, b.stream, b.capture);
  }
};

struct Workspaces {
  // Two locks, because CUDA's own thread calls give_back and must not wait for CUDA calls. `making`
  // is held while a workspace is made by CUDA calls; `mutex` guards the maps, for a moment only.
  std::mutex making;
  std::mutex mutex;
  std::map<Key, cuda::Workspace*> taken;
  std::map<c10::DeviceIndex, std::vector<cuda::Workspace*>> spare;
  std::map<c10::DeviceIndex, int> streams;  // the number of streams that have a workspace

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
  static auto* workspaces = new Workspaces;  // never deleted: the CUDA runtime may end later
  return *workspaces;
}

struct Free {
  void operator()(void* memory) const { (void)cudaFree(memory); }
};
struct Destroy {
  void operator()(cudaStream_t stream) const { (void)cudaStreamDestroy(stream); }
};

// The current stream and others may be capturing. So the memory is zeroed on a new stream, in the
// relaxed mode, which allows cudaMalloc during a capture.
cuda::Workspace* zeroed_workspace(bool is_capturing) {
  const c10::cuda::CUDAStreamCaptureModeGuard guard(cudaStreamCaptureModeRelaxed);
  void* memory = nullptr;
  if (cudaMalloc(&memory, sizeof(cuda::Workspace)) != cudaSuccess) {
    (void)cudaGetLastError();
    // PyTorch's allocator may hold all free memory of the device.
    if (!is_capturing) c10::cuda::CUDACachingAllocator::emptyCache();
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

// A workspace for the next launch of the calling thread. The thread keeps the memory until it calls
// this function again. By then the launch is on the stream, and the allocator makes sure, as for
// any tensor, that the next user of the memory waits for the launch.
cuda::Workspace* temporary_workspace(cudaStream_t stream) {
  thread_local std::unique_ptr<void, Delete> memory;
  memory.reset();
  memory.reset(
      c10::cuda::CUDACachingAllocator::raw_alloc_with_stream(sizeof(cuda::Workspace), stream));
  auto* workspace = static_cast<cuda::Workspace*>(memory.get());
  C10_CUDA_CHECK(cudaMemsetAsync(&workspace->finished, 0, sizeof workspace->finished, stream));
  return workspace;
}

// CUDA calls this function, on a thread that must not call CUDA functions.
void give_back(void* key_of_graph) {
  const std::unique_ptr<Key> key(static_cast<Key*>(key_of_graph));
  all().give_back(*key);
}

// Makes CUDA call give_back when the graph is destroyed.
void give_back_with(cudaGraph_t graph, const Key& key) {
  cudaUserObject_t owner = nullptr;
  auto kept = std::make_unique<Key>(key);
  C10_CUDA_CHECK(
      cudaUserObjectCreate(&owner, kept.get(), give_back, 1, cudaUserObjectNoDestructorSync));
  (void)kept.release();
  const cudaError_t error = cudaGraphRetainUserObject(graph, owner, 1, cudaGraphUserObjectMove);
  if (error != cudaSuccess) (void)cudaUserObjectRelease(owner, 1);  // calls give_back
  C10_CUDA_CHECK(error);
}

}  // namespace

cuda::Workspace* workspace_of(c10::DeviceIndex device, cudaStream_t stream) {
  // The id, not the handle, tells streams apart: a new stream may get the handle of a destroyed
  // one, and the handle of a thread's default stream is the same in every thread.
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
