#include "client/servers.hpp"

#include <algorithm>
#include <charconv>
#include <thread>

#include "client/gather.hpp"
#include "client/put.hpp"
#include "core/random.hpp"
#include "replication/wire.hpp"

namespace cpp_store::client {
namespace {

using replication::Answer;
using replication::Request;
using Kind = Request::Kind;

constexpr std::string_view word = "replicas=";
// How long a server that did not answer is left alone: a multiple of how long that took.
constexpr int rest_factor = 4;
constexpr std::chrono::milliseconds shortest_rest{20};
constexpr std::chrono::milliseconds longest_rest{10'000};
// The same of one that is gone: it may have been started again, and what is put meanwhile has one
// replica less.
constexpr std::chrono::milliseconds longest_rest_of_gone{500};
constexpr std::chrono::seconds longest_try{6};  // until it is known that it does not answer

Answer failure(const Error& error) {
    Answer answer;
    answer.error = error.code();
    answer.why = error.what();
    return answer;
}

}  // namespace

std::string replicas_word(std::size_t replicas) {
    return std::string(word) + std::to_string(replicas);
}

std::size_t take_replicas(std::vector<std::string>& list) {
    std::size_t replicas = 1;
    std::erase_if(list, [&](const std::string& each) {
        if (!each.starts_with(word)) return false;
        std::from_chars(each.data() + word.size(), each.data() + each.size(), replicas);
        return true;
    });
    return std::clamp<std::size_t>(replicas, 1, std::max<std::size_t>(1, list.size()));
}

Servers::Servers(std::vector<std::shared_ptr<Connection>> connections,
                 std::function<void()> check_signals, Here here)
    : connections_(std::move(connections)),
      check_signals_(std::move(check_signals)),
      here_(std::move(here)),
      down_until_(std::make_unique<std::atomic<Clock::rep>[]>(connections_.size())) {}

Servers::~Servers() = default;

bool Servers::is_down(std::size_t server) const {
    return Clock::now().time_since_epoch().count() < down_until_[server];
}

std::shared_ptr<Servers::Exchange> Servers::pause(std::chrono::milliseconds length) {
    if (check_signals_) check_signals_();
    std::this_thread::sleep_for(length);
    auto exchange = std::make_shared<Exchange>();
    exchange->done = true;
    return exchange;
}

std::uint32_t Servers::random() {
    return static_cast<std::uint32_t>(random_number());
}

Clock::time_point Servers::begin(std::size_t server) {
    const auto now = Clock::now();
    // One thread finds out whether it is back; the others go on without it meanwhile.
    if (down_until_[server] != 0)
        down_until_[server] = (now + longest_try).time_since_epoch().count();
    return now;
}

void Servers::answered(std::size_t server) noexcept {
    if (down_until_[server] != 0) down_until_[server] = 0;
}

void Servers::failed(std::size_t server, Clock::time_point begun, const Error& error) noexcept {
    if (error.code() != Errc::connection && error.code() != Errc::deadline) {
        answered(server);
        return;
    }
    const auto now = Clock::now();
    const auto most = error.code() == Errc::connection ? longest_rest_of_gone : longest_rest;
    const auto rest = std::clamp<Clock::duration>(rest_factor * (now - begun), shortest_rest, most);
    down_until_[server] = (now + rest).time_since_epoch().count();
}

std::shared_ptr<Servers::Exchange> Servers::start(std::vector<Call> calls) {
    auto exchange = std::make_shared<Exchange>();
    exchange->done = true;
    exchange->answers.resize(calls.size());
    std::vector<PendingCallPtr> sent;
    std::vector<std::size_t> asked;  // which calls these are
    std::vector<Clock::time_point> begun(calls.size());
    for (std::size_t i = 0; i < calls.size(); ++i) {
        const std::size_t server = calls[i].server;
        if (!connections_[server]) {
            exchange->answers[i] = here_(calls[i].request);
            continue;
        }
        begun[i] = begin(server);
        try {
            if (calls[i].request.kind == Kind::pull) {
                exchange->answers[i] = pull(calls[i]);
                answered(server);
            } else if (calls[i].request.kind == Kind::fetch) {
                exchange->answers[i] = fetch(calls[i]);
                answered(server);
            } else {
                sent.push_back(send(calls[i]));
                asked.push_back(i);
            }
        } catch (const Error& error) {
            failed(server, begun[i], error);
            exchange->answers[i] = failure(error);
        }
    }
    Connection::wait(sent);
    for (std::size_t j = 0; j < sent.size(); ++j) {
        const Call& call = calls[asked[j]];
        try {
            exchange->answers[asked[j]] = receive(call, sent[j]);
            answered(call.server);
        } catch (const Error& error) {
            failed(call.server, begun[asked[j]], error);
            exchange->answers[asked[j]] = failure(error);
        }
    }
    return exchange;
}

PendingCallPtr Servers::send(const Call& call) {
    const Request& request = call.request;
    Connection& server = *connections_[call.server];
    const auto ask = [&](wire::Operation operation, const auto& encode) {
        return server.start(operation,
                            [&](wire::Writer& out, std::span<const wire::Remote>) { encode(out); });
    };
    switch (request.kind) {
        case Kind::put:
            return start_put(server, *request.put, request.tensors);
        case Kind::acquire:
        case Kind::release:
            return ask(
                request.kind == Kind::acquire ? wire::Operation::acquire : wire::Operation::release,
                [&](wire::Writer& out) {
                    wire::encode(out,
                                 wire::References{request.model, request.keys, request.holder});
                });
        case Kind::read:
            return ask(wire::Operation::lookup, [&](wire::Writer& out) { out.id(request.model); });
        default:
            return ask(replication::operation_of(request.kind),
                       [&](wire::Writer& out) { replication::encode(out, request); });
    }
}

Answer Servers::receive(const Call& call, const PendingCallPtr& sent) {
    wire::Reader in = sent->response();
    Answer answer;
    switch (call.request.kind) {
        case Kind::put:
            answer.bytes = in.u64();
            answer.is_new = in.u8() != 0;
            break;
        case Kind::acquire:
            for (std::uint32_t left = in.count(8); left > 0; --left) {
                answer.sizes.push_back(in.u64());
            }
            break;
        case Kind::release:
            break;
        case Kind::read:
            answer.info = wire::decode_info(in);
            break;
        default:
            answer = replication::decode_answer(call.request.kind, in);
    }
    return answer;
}

// What a model is, then its own tensors.
Answer Servers::pull(const Call& call) {
    const PendingCallPtr sent = send(call);
    Connection::wait({&sent, 1});
    Answer answer = receive(call, sent);
    std::vector<LayerKey> keys;
    for (const LayerLocation& location : answer.info->layers) {
        if (location.owner == answer.info->owner) {
            keys.push_back(answer.info->table->key(location.layer));
        }
    }
    if (!keys.empty()) answer.layers = fetch(call.server, answer.info->owner, keys);
    return answer;
}

// Those of the layers that the server has.
Answer Servers::fetch(const Call& call) {
    Answer answer;
    for (const LayerKey& key : call.request.keys) {
        try {
            auto layers = fetch(call.server, call.request.model, {&key, 1});
            std::ranges::move(layers, std::back_inserter(answer.layers));
        } catch (const Error& error) {
            if (error.code() != Errc::not_found) throw;
        }
    }
    return answer;
}

std::vector<replication::LayerData> Servers::fetch(std::size_t server, const std::string& owner,
                                                   std::span<const LayerKey> keys) {
    std::vector<Source> sources(keys.size());
    for (std::size_t i = 0; i < keys.size(); ++i) {
        sources[i].name = std::to_string(i);
        sources[i].owner = owner;
        sources[i].key = keys[i];
        sources[i].server = server;
    }
    std::vector<replication::LayerData> layers;
    const auto add = [&](std::span<const TensorSpec> specs) -> replication::LayerData& {
        replication::LayerData& layer = layers.emplace_back();
        layer.key = keys[layers.size() - 1];
        layer.specs.assign(specs.begin(), specs.end());
        return layer;
    };
    gather(
        connections_, sources,
        [&](std::string_view, std::span<const TensorSpec> specs) {
            replication::LayerData& layer = add(specs);
            auto memory = std::make_shared<std::vector<std::vector<std::byte>>>();
            std::vector<std::span<std::byte>> buffers;
            for (const TensorSpec& spec : specs) {
                buffers.emplace_back(memory->emplace_back(spec.nbytes()));
            }
            layer.tensors.assign(buffers.begin(), buffers.end());
            layer.pin = std::move(memory);
            return buffers;
        },
        [&](std::string_view, std::span<const TensorSpec> specs,
            std::span<const std::span<const std::byte>> tensors, std::shared_ptr<const void> pin) {
            replication::LayerData& layer = add(specs);
            layer.tensors.assign(tensors.begin(), tensors.end());
            layer.pin = std::move(pin);
        },
        nullptr);
    return layers;
}

}  // namespace cpp_store::client
