// Records of models as they lie in segments: any bytes are one, or are refused with Errc::storage.
#include <cstdlib>

#include "cpp_store/error.hpp"
#include "durable/fields.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    using namespace cpp_store;
    const auto bytes = std::as_bytes(std::span(data, size));
    durable::Reader in(bytes);
    try {
        const durable::ModelRecord model = durable::decode_model(in);
        if (!model.table) std::abort();
        durable::Writer again;
        durable::encode(again, model);
        durable::Reader read(again.data());
        if (durable::decode_model(read).nbytes() != model.nbytes()) std::abort();
        read.end();
    } catch (const Error& error) {
        if (error.code() != Errc::storage) std::abort();
    }
    return 0;
}
