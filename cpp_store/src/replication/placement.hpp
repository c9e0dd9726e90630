// Which servers keep a model.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace cpp_store::replication {

// Rendezvous hashing: each server's address has a hash together with a model's id, and the servers
// of the highest hashes keep the model. If a server is added to the list, only the models that it
// takes over move.
class Placement {
  public:
    Placement() = default;
    // At least one server; `replicas` between 1 and their number.
    Placement(std::vector<std::string> servers, std::size_t replicas);

    [[nodiscard]] const std::vector<std::string>& servers() const noexcept { return servers_; }
    [[nodiscard]] std::size_t replicas() const noexcept { return replicas_; }

    // Positions in servers() of those that keep a model, the highest hash first. They are asked in
    // this order, which is what makes one of two concurrent puts or retirements of an id the first.
    [[nodiscard]] std::vector<std::size_t> of(std::string_view model) const;
    // The first of them.
    [[nodiscard]] std::size_t home(std::string_view model) const noexcept;
    [[nodiscard]] bool keeps(std::size_t server, std::string_view model) const;

  private:
    std::vector<std::string> servers_;
    std::size_t replicas_ = 1;
};

}  // namespace cpp_store::replication
