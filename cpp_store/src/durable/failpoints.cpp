#include "durable/failpoints.hpp"

#ifdef CPP_STORE_FAILPOINTS

#include <signal.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <map>
#include <mutex>
#include <utility>

#include "cpp_store/error.hpp"

namespace cpp_store::failpoints {
namespace {

enum class Action : std::uint8_t { kill, error, cut };

struct Armed {
    std::string name;
    std::uint64_t nth = 0;  // 0: every visit
    Action action = Action::kill;
    int error = 0;
};

class Registry {
  public:
    Registry() {
        if (const char* const given = std::getenv("CPP_STORE_FAILPOINTS")) arm(given);
    }

    Outcome visit(std::string_view name) {
        const std::scoped_lock lock(mutex_);
        const std::uint64_t count = ++visits_[std::string(name)];
        ++all_;
        for (const Armed& each : armed_) {
            const bool any = each.name == "*";
            if (!any && each.name != name) continue;
            if (each.nth != 0 && each.nth != (any ? all_ : count)) continue;
            switch (each.action) {
                case Action::kill:
                    ::kill(::getpid(), SIGKILL);
                    ::pause();
                    break;
                case Action::error:
                    return {.error = each.error, .is_short = false};
                case Action::cut:
                    return {.error = 0, .is_short = true};
            }
        }
        return {};
    }

    void arm(std::string_view what) {
        std::vector<Armed> armed;
        while (!what.empty()) {
            const std::size_t end = std::min(what.find(','), what.size());
            armed.push_back(parse(what.substr(0, end)));
            what.remove_prefix(std::min(end + 1, what.size()));
        }
        const std::scoped_lock lock(mutex_);
        armed_ = std::move(armed);
        visits_.clear();
        all_ = 0;
    }

    std::vector<Visits> visits() {
        const std::scoped_lock lock(mutex_);
        std::vector<Visits> out;
        for (const auto& [name, count] : visits_) out.push_back({name, count});
        return out;
    }

  private:
    static Armed parse(std::string_view text) {
        static constexpr std::array<std::pair<std::string_view, int>, 5> errors{
            {{"enospc", ENOSPC},
             {"eio", EIO},
             {"emfile", EMFILE},
             {"enfile", ENFILE},
             {"enomem", ENOMEM}}};
        const auto malformed = [&] {
            return Error(Errc::invalid_argument,
                         "expected failpoint:nth:action, not '" + std::string(text) + "'");
        };
        const std::size_t first = text.find(':');
        const std::size_t second = text.find(':', first + 1);
        if (first == text.npos || second == text.npos) throw malformed();
        Armed armed;
        armed.name = text.substr(0, first);
        const std::string nth(text.substr(first + 1, second - first - 1));
        if (nth != "*") {
            armed.nth = std::strtoull(nth.c_str(), nullptr, 10);
            if (armed.nth == 0) throw malformed();
        }
        const std::string_view action = text.substr(second + 1);
        if (action == "kill") return armed;
        if (action == "short") {
            armed.action = Action::cut;
            return armed;
        }
        armed.action = Action::error;
        for (const auto& [name, error] : errors) {
            if (action == name) armed.error = error;
        }
        if (armed.error == 0) throw malformed();
        return armed;
    }

    std::mutex mutex_;
    std::vector<Armed> armed_;
    std::map<std::string, std::uint64_t> visits_;
    std::uint64_t all_ = 0;
};

Registry& registry() {
    static Registry made;
    return made;
}

}  // namespace

Outcome visit(std::string_view name) {
    return registry().visit(name);
}

void arm(std::string_view what) {
    registry().arm(what);
}

std::vector<Visits> visits() {
    return registry().visits();
}

}  // namespace cpp_store::failpoints

#endif
