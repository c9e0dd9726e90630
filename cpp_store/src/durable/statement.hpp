// What the parts of the catalogue share: catalogue.cpp (opening it, changes) and questions.cpp.
#pragma once

#include <sqlite3.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "durable/catalogue.hpp"

namespace cpp_store::durable {

// One statement, used again and again. Bound values must live until it has run.
class Catalogue::Statement {
  public:
    Statement(Catalogue& catalogue, const char* sql) : catalogue_(catalogue) {
        if (sqlite3_prepare_v3(catalogue.database_, sql, -1, SQLITE_PREPARE_PERSISTENT, &statement_,
                               nullptr) != SQLITE_OK) {
            catalogue_.fail("cannot ask");
        }
    }
    Statement(const Statement&) = delete;
    Statement& operator=(const Statement&) = delete;
    ~Statement() { sqlite3_finalize(statement_); }

    Statement& start() {
        sqlite3_reset(statement_);
        next_ = 1;
        return *this;
    }
    Statement& bind(std::uint64_t value) {
        return check(sqlite3_bind_int64(statement_, next_++, static_cast<std::int64_t>(value)));
    }
    Statement& bind(double value) {  // SQLite has no NaN: NULL
        return check(sqlite3_bind_double(statement_, next_++, value));
    }
    Statement& bind(std::string_view value) {
        return check(sqlite3_bind_text64(statement_, next_++, value.data() ? value.data() : "",
                                         value.size(), SQLITE_STATIC, SQLITE_UTF8));
    }
    Statement& bind(std::span<const std::byte> value) {
        return check(sqlite3_bind_blob64(statement_, next_++,
                                         value.empty() ? "" : (const void*)value.data(),
                                         value.size(), SQLITE_STATIC));
    }
    Statement& bind_null() { return check(sqlite3_bind_null(statement_, next_++)); }
    // Whether there is a row.
    bool step() {
        const int code = sqlite3_step(statement_);
        if (code == SQLITE_ROW) return true;
        if (code == SQLITE_DONE) {
            sqlite3_reset(statement_);
            return false;
        }
        sqlite3_reset(statement_);
        catalogue_.fail("cannot write");
    }
    void run() {
        while (step()) {
        }
    }
    [[nodiscard]] std::uint64_t number(int column) const {
        return static_cast<std::uint64_t>(sqlite3_column_int64(statement_, column));
    }
    [[nodiscard]] bool is_null(int column) const {
        return sqlite3_column_type(statement_, column) == SQLITE_NULL;
    }
    [[nodiscard]] double real(int column) const {
        if (is_null(column)) return std::nan("");
        return sqlite3_column_double(statement_, column);
    }
    // Until the next step.
    [[nodiscard]] std::span<const std::byte> blob(int column) const {
        const void* const data = sqlite3_column_blob(statement_, column);
        const int size = sqlite3_column_bytes(statement_, column);
        return {static_cast<const std::byte*>(data), static_cast<std::size_t>(size)};
    }
    [[nodiscard]] std::string text(int column) const {
        const auto* const data = sqlite3_column_text(statement_, column);
        const int size = sqlite3_column_bytes(statement_, column);
        return data ? std::string(reinterpret_cast<const char*>(data),
                                  static_cast<std::size_t>(size))
                    : std::string();
    }

  private:
    Statement& check(int code) {
        if (code != SQLITE_OK) catalogue_.fail("cannot write");
        return *this;
    }
    Catalogue& catalogue_;
    sqlite3_stmt* statement_ = nullptr;
    int next_ = 1;
};

}  // namespace cpp_store::durable
