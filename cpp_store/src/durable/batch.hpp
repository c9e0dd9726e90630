// What the parts of the journal share: journal.cpp (its life and its queue), batch.cpp (what is
// written in one transaction) and tidying.cpp (what is written anew).
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "durable/change.hpp"
#include "durable/journal.hpp"

namespace cpp_store::durable {

// What a layer's tensor is called in a segment. Throws Errc::storage if it is no layer of that
// table, and was not adopted either.
[[nodiscard]] std::string tensor_name(std::string_view owner, const LayerTable& table,
                                      const LayerRecord& layer, std::size_t tensor);

// Makes a change in the catalogue, within a transaction. Returns what left which segment by it.
Catalogue::Dropped apply(Catalogue& catalogue, const Change& change,
                         std::uint64_t most_retirements);

}  // namespace cpp_store::durable
