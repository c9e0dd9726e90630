// Layer tables from outside: any bytes are refused with Errc::protocol or are a table that encodes
// to them.
#include <algorithm>
#include <cstdlib>

#include "cpp_store/error.hpp"
#include "cpp_store/layer_table.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const auto bytes = std::as_bytes(std::span(data, size));
    try {
        const auto table = cpp_store::LayerTable::decode(bytes);
        if (!std::ranges::equal(table.encode(), bytes)) std::abort();
        for (std::size_t i = 0; i < table.size(); ++i) {
            if (table.find(table.key(i)) != i) std::abort();
        }
    } catch (const cpp_store::Error& error) {
        if (error.code() != cpp_store::Errc::protocol) std::abort();
    }
    return 0;
}
