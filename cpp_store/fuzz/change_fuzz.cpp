// Changes as they lie in a redo log: any bytes are changes, or are refused with Errc::storage.
#include <cstdlib>

#include "cpp_store/error.hpp"
#include "durable/change.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace cpp_store;
    durable::Reader in(std::as_bytes(std::span(data, size)));
    try {
        while (true) {
            const durable::Change change = durable::decode_change(in);
            if (change.kind != durable::Change::Kind::put) continue;
            if (!change.record || !change.record->table) std::abort();
            if (change.packet.empty()) continue;
            for (const durable::LayerRecord& layer : change.record->layers) {
                for (const durable::TensorRecord& tensor : layer.tensors) {
                    if (!tensor.in_packet(change.packet)) std::abort();
                }
            }
        }
    } catch (const Error& error) {
        if (error.code() != Errc::storage) std::abort();
    }
    return 0;
}
