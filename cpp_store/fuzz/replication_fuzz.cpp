// Requests of replicas, from a peer that may say anything: each is refused with Errc::protocol, or
// is encoded as it came, and answered by a server with an answer or an error, in that server's
// words. Answers from such a peer: likewise, up to the decoder.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <optional>

#include "cpp_store/error.hpp"
#include "replication/replica.hpp"
#include "replication/wire.hpp"

namespace {

using namespace cpp_store;
using replication::Request;

constexpr wire::Operation operations[] = {
    wire::Operation::retire, wire::Operation::undo,   wire::Operation::state,
    wire::Operation::pull,   wire::Operation::repair, wire::Operation::compare,
    wire::Operation::shared,
};

// The second of three servers, with two models.
struct Server {
    Server() {
        for (const char* const id : {"m", "n"}) {
            PutRequest request;
            request.model = id;
            request.table = std::make_shared<const LayerTable>(
                std::vector<LayerTable::Layer>{{"a", {}, 0}, {"b", {0}, 0}});
            for (std::uint32_t i = 0; i < 2; ++i) request.own.push_back({i, {{DType::uint8, {3}}}});
            request.owner = id + std::string("@5");
            PendingPut pending = store.prepare(std::move(request));
            const std::byte bytes[3] = {};
            for (std::size_t i = 0; i < 2; ++i) pending.fill(i, bytes);
            (void)store.commit(std::move(pending));
        }
        store.acquire("m@5", std::vector{layer_key("a")}, "heir@6");
        replica.emplace(store, replication::Placement({"x", "y", "z"}, 3), 1);
    }
    Store store{Store::Options{.memory = {.limit = 1 << 20, .region_size = 1 << 20, .ahead = 0}}};
    std::optional<replication::Replica> replica;
};

// Flags come in as 0 or anything else.
std::vector<std::byte> encoded(const Request& request) {
    wire::Writer out;
    replication::encode(out, request);
    return out.take();
}

void ask(Server& server, wire::Operation operation, std::span<const std::byte> body) {
    wire::Reader in(body);
    const Request request = replication::decode_request(operation, in);
    in.end();
    const std::vector<std::byte> bytes = encoded(request);
    wire::Reader again(bytes);
    if (encoded(replication::decode_request(operation, again)) != bytes) std::abort();
    const replication::Answer answer = replication::answer(*server.replica, request);
    if (answer.error) {
        if (answer.why.empty() || answer.error == Errc::internal) std::abort();
        return;
    }
    wire::Writer out;
    replication::encode(out, request.kind, answer);
    wire::Reader there(out.data());
    wire::Writer out_again;
    replication::encode(out_again, request.kind, replication::decode_answer(request.kind, there));
    there.end();
    if (!std::ranges::equal(out_again.data(), out.data())) std::abort();
}

}  // namespace

// Requests and answers, each: which (1 byte), how long its body is (1 byte), the body.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    std::span<const std::byte> left = std::as_bytes(std::span(data, size));
    std::optional<Server> server;
    while (left.size() >= 2) {
        const auto which = static_cast<std::size_t>(left[0]);
        const std::size_t length = std::min(static_cast<std::size_t>(left[1]), left.size() - 2);
        const wire::Operation operation = operations[which % std::size(operations)];
        const auto body = left.subspan(2, length);
        left = left.subspan(2 + length);
        try {
            if (which < 128) {
                if (!server) server.emplace();
                ask(*server, operation, body);
            } else {
                wire::Reader in(body);
                const auto kind = static_cast<Request::Kind>(which % 12);
                (void)replication::decode_answer(kind, in);
            }
        } catch (const Error& error) {
            if (error.code() != Errc::protocol) std::abort();
        }
    }
    return 0;
}
