/* hotset for C. `example.c` shows all of it in use.
 *
 * Ownership: the caller owns what it passes in, and the library keeps no pointer to it after the call. A session is freed by
 * hotset_close, an error by hotset_error_free. What is written into the caller's memory is a copy.
 *
 * Errors: a function that can fail returns a code. Where its last argument is not NULL, that is set to an error with a code and a
 * sentence, or to NULL if all went well. Nothing is kept between calls: no "last error", no globals, no thread-local state.
 *
 * NULL is an error where a value is needed, never a crash. Wild pointers are the caller's.
 *
 * Panics do not cross: a broken invariant is HOTSET_CODE_PANIC, and the session that it broke answers nothing else from then on, but
 * can be closed.
 *
 * Threads: a process may hold several sessions, of the same model or of others, each used by one thread at a time, by any thread. Two
 * calls at once on one session, or a call from inside its callback, are refused with HOTSET_CODE_BUSY.
 *
 * Growth: structs begin with their size, which the caller sets: hotset_options options = {.size = sizeof options}; Zeros are the
 * defaults, and a field that is added later is zero for those who do not know it. */


#ifndef HOTSET_H
#define HOTSET_H

/* Made from bindings/c/src by cbindgen: cargo test -p hotset-c --test header -- --ignored */

#include <stddef.h>
#include <stdint.h>

// Changes when a program that was built against an older header no longer works.
#define HOTSET_ABI_VERSION 1

// How a call ended.
typedef enum hotset_code {
  // All went well.
  HOTSET_CODE_OK = 0,
  // An argument is NULL that must not be.
  HOTSET_CODE_NULL_ARGUMENT = 1,
  // The caller asked for something that cannot be: an unknown name, a number out of its range, text that is not UTF-8.
  HOTSET_CODE_INVALID = 2,
  // The operating system refused something.
  HOTSET_CODE_IO = 3,
  // A file's contents are wrong, or the file is not whole.
  HOTSET_CODE_BAD_FILE = 4,
  // The file is sound, and asks for something that hotset does not have.
  HOTSET_CODE_UNSUPPORTED = 5,
  // The memory budget is too small: `hotset_error_least_bytes` has the smallest one that would do.
  HOTSET_CODE_BUDGET_TOO_SMALL = 6,
  // The caller's buffer is too small: the length that was written says how large it must be.
  HOTSET_CODE_BUFFER_TOO_SMALL = 7,
  // The session is in use, by another thread or by the callback's own caller.
  HOTSET_CODE_BUSY = 8,
  // hotset has a bug. The session can only be closed.
  HOTSET_CODE_PANIC = 9,
} hotset_code;

// Why a text ended.
typedef enum hotset_finish {
  // The model ended it.
  HOTSET_FINISH_END = 0,
  // A stop string came.
  HOTSET_FINISH_STOP = 1,
  // It has as many tokens as were asked for.
  HOTSET_FINISH_LENGTH = 2,
  // The context is full.
  HOTSET_FINISH_CONTEXT = 3,
  // The callback wanted no more.
  HOTSET_FINISH_CANCELLED = 4,
} hotset_finish;

// An error. Owned by whoever received it, until `hotset_error_free`.
typedef struct hotset_error hotset_error;

// A model within a budget, its tokenizer, and the sequence of tokens that went through it.
typedef struct hotset_session hotset_session;

// How a session runs. Zeros are the defaults; `size` is always set.
typedef struct hotset_options {
  // sizeof(hotset_options).
  size_t size;
  // The memory budget in bytes. 0: four fifths of what the machine has free, at most what the model can use, and less while the
  // machine is short of memory.
  uint64_t memory_bytes;
  // Eviction policy by name: "lfu-adaptive", "echo", "lfu-decay", "lfuda", "lru", "slru". NULL: the first.
  const char *policy;
  // What is read ahead: "auto", "auto-votes", "lookahead", "votes", "both", "history", "off". NULL: the first.
  const char *prefetch;
  // Read path: "pread", "direct", "uring", "mapped", "page-cache". NULL: the one that suits files, budget and drive.
  const char *io;
  // Type of the KV cache: "f32", "f16", "q8_0". NULL: f16.
  const char *kv;
  // Tokens of context. 0: the model's own, at most 4096.
  uint32_t n_ctx;
  // Tokens of a prompt that run together. 0: what suits model and budget.
  uint32_t n_batch;
  // Threads that compute. 0: as many as there are cores to use.
  uint32_t threads;
  // Reads in flight at most. 0: what suits the read path.
  uint32_t io_depth;
  // 0: the budget is what the whole process stays within. 1: it is what this session allocates, whatever else the process holds;
  // for a process that is mostly something else, or has several sessions.
  uint32_t session_only;
  // 1: free slots are filled with experts while the drive is idle.
  uint32_t fill;
} hotset_options;

// What a session is and what it counted since it was opened. An expert counts once for a layer and batch, however many tokens want it.
typedef struct hotset_stats {
  // sizeof(hotset_stats).
  size_t size;
  // The budget now, in bytes.
  uint64_t memory_bytes;
  // The smallest budget that `hotset_set_memory` takes.
  uint64_t least_bytes;
  // The largest: the one that the session was opened with.
  uint64_t most_bytes;
  // Tokens that the context holds.
  uint64_t n_ctx;
  // Tokens in it now.
  uint64_t n_past;
  // Tokens of the vocabulary.
  uint64_t n_vocab;
  // Prompt tokens that ran.
  uint64_t prompt_tokens;
  // Nanoseconds that they took.
  uint64_t prompt_ns;
  // Tokens that ran one at a time.
  uint64_t decode_tokens;
  // Nanoseconds that they took.
  uint64_t decode_ns;
  // While prompts ran: experts that were in memory.
  uint64_t prompt_hits;
  // Experts whose read was in flight already.
  uint64_t prompt_late;
  // Experts that had to be read.
  uint64_t prompt_misses;
  // While tokens were decoded: experts that were in memory.
  uint64_t decode_hits;
  // Experts whose read was in flight already.
  uint64_t decode_late;
  // Experts that had to be read.
  uint64_t decode_misses;
  // Nanoseconds of waiting for reads with nothing to compute.
  uint64_t stall_ns;
  // Bytes of expert reads, all kinds together.
  uint64_t bytes_read;
  // Experts read ahead.
  uint64_t prefetches;
  // Those of them that were then used.
  uint64_t prefetches_used;
  // Those of them that were evicted unused.
  uint64_t prefetches_wasted;
  // Experts that lost their slot to another.
  uint64_t evictions;
} hotset_stats;

// How a text is written. Zeros, and NULL for the whole, are the most likely token every time, without end but the context's.
typedef struct hotset_text_options {
  // sizeof(hotset_text_options).
  size_t size;
  // Texts before which the generated one ends, each ending in NUL.
  const char *const *stop;
  // How many `stop` has.
  size_t n_stop;
  // The same seed, prompt and options give the same text, whatever the budget.
  uint64_t seed;
  // Tokens at most. 0: as many as the context holds.
  uint32_t max_tokens;
  // 0: always the most likely token. Below 1 sharpens the distribution, above 1 flattens it.
  float temperature;
  // Keep the `top_k` most likely tokens. 0: all.
  uint32_t top_k;
  // Keep the most likely tokens that together reach this probability. 0 and 1: all.
  float top_p;
  // Keep tokens at least this fraction as likely as the most likely one. 0: all.
  float min_p;
  // Penalise recent tokens if above 1. 0 and 1: no penalty.
  float repeat_penalty;
  // How many tokens are recent. 0: 64.
  uint32_t repeat_last_n;
  // 1: go on after the model has ended its text.
  uint32_t ignore_end;
} hotset_text_options;

// Called with each piece of the text: `len` bytes of UTF-8 and a NUL, which live until it returns. A piece is empty where a token
// completes no character, and after each batch of a long prompt, so that every call is a chance to stop. Returns 0 to stop, anything
// else to go on. It must not use the session, whose calls are refused meanwhile, nor leave by an exception or longjmp.
typedef int (*hotset_on_text)(const char *text, size_t len, void *user);

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The library's `HOTSET_ABI_VERSION`, to compare with the header's.
uint32_t hotset_abi_version(void);

// The error's code; `HOTSET_CODE_OK` for NULL.
//
// # Safety
// `error` is NULL, or from a call of this library and not freed.
enum hotset_code hotset_error_code(const struct hotset_error *error);

// The error as one sentence in UTF-8, which lives as long as the error; an empty one for NULL.
//
// # Safety
// `error` is NULL, or from a call of this library and not freed.
const char *hotset_error_message(const struct hotset_error *error);

// The smallest budget that would do, in bytes, of a `HOTSET_CODE_BUDGET_TOO_SMALL`; else 0.
//
// # Safety
// `error` is NULL, or from a call of this library and not freed.
uint64_t hotset_error_least_bytes(const struct hotset_error *error);

// Frees an error. NULL is no error.
//
// # Safety
// `error` is NULL, or from a call of this library and not freed.
void hotset_error_free(struct hotset_error *error);

// Opens a model file (GGUF; of a split set any file) within a budget: loads the dense weights and makes the slots for experts.
// `*out` becomes the session, to be closed by `hotset_close`, or NULL. `options` may be NULL: all defaults.
//
// # Safety
// `path` and the strings of `options` are NULL or end in NUL; `options` has the size that it says, and `out` and `error` can be
// written, unless they are NULL.
enum hotset_code hotset_open(const char *path,
                             const struct hotset_options *options,
                             struct hotset_session **out,
                             struct hotset_error **error);

// Closes a session and frees what it holds; no other call may use it from then on. From inside the session's callback it is refused
// with `HOTSET_CODE_BUSY`, and the session stays open. NULL is no error.
//
// # Safety
// `session` is NULL, or from `hotset_open` and not closed.
enum hotset_code hotset_close(struct hotset_session *session);

// Runs tokens after those that the session holds, as a prompt: in batches, each expert read at most once for a batch. The last one's
// logits are there for `hotset_logits` then. If it fails, the session is as before.
//
// # Safety
// `session` is NULL or open, `tokens` is NULL or has `n_tokens`, and `error` is NULL or can be written.
enum hotset_code hotset_feed(struct hotset_session *session,
                             const uint32_t *tokens,
                             size_t n_tokens,
                             struct hotset_error **error);

// Runs one token after those that the session holds, and gives logits for `hotset_logits`. If it fails, the session is as before.
//
// # Safety
// `session` is NULL or open, and `error` is NULL or can be written.
enum hotset_code hotset_decode(struct hotset_session *session,
                               uint32_t token,
                               struct hotset_error **error);

// Copies the logits that the last token gave, one for each token of the vocabulary, and says how many there are. With `logits` NULL
// it says only that.
//
// # Safety
// `session` is NULL or open, `logits` is NULL or has room for `capacity`, and `n_logits` and `error` are NULL or can be written.
enum hotset_code hotset_logits(const struct hotset_session *session,
                               float *logits,
                               size_t capacity,
                               size_t *n_logits,
                               struct hotset_error **error);

// Sets another budget while the session is open, from `least_bytes` of its statistics to `most_bytes`. Memory goes back to the system
// at once, or is used again; what is computed stays the same.
//
// # Safety
// `session` is NULL or open, and `error` is NULL or can be written.
enum hotset_code hotset_set_memory(struct hotset_session *session,
                                   uint64_t memory_bytes,
                                   struct hotset_error **error);

// Forgets the session's tokens, for a new text. Experts stay in memory.
//
// # Safety
// `session` is NULL or open, and `error` is NULL or can be written.
enum hotset_code hotset_reset(struct hotset_session *session, struct hotset_error **error);

// Fills in `stats`, whose `size` the caller has set.
//
// # Safety
// `session` is NULL or open, `stats` is NULL or has the size that it says, and `error` is NULL or can be written.
enum hotset_code hotset_get_stats(const struct hotset_session *session,
                                  struct hotset_stats *stats,
                                  struct hotset_error **error);

// Tokens of `len` bytes of text. `add_special` (0 or 1) puts the beginning and end tokens around it that the model's file asks for;
// `parse_special` reads control tokens that are spelled out in the text, such as those of chat templates, as such.
//
// `*n_tokens` becomes the number of tokens, also if `tokens` is NULL, which is no error, or too small, which is
// `HOTSET_CODE_BUFFER_TOO_SMALL`.
//
// # Safety
// `session` is NULL or open, `text` is NULL or has `len` bytes, `tokens` is NULL or has room for `capacity`, and `n_tokens` and `error`
// are NULL or can be written.
enum hotset_code hotset_tokenize(const struct hotset_session *session,
                                 const char *text,
                                 size_t len,
                                 uint32_t add_special,
                                 uint32_t parse_special,
                                 uint32_t *tokens,
                                 size_t capacity,
                                 size_t *n_tokens,
                                 struct hotset_error **error);

// The text of a sequence of tokens from its beginning, without control tokens: UTF-8, and not ended by a NUL.
//
// `*len` becomes the number of bytes, also if `text` is NULL, which is no error, or too small, which is
// `HOTSET_CODE_BUFFER_TOO_SMALL`.
//
// # Safety
// `session` is NULL or open, `tokens` is NULL or has `n_tokens`, `text` is NULL or has room for `capacity` bytes, and `len` and
// `error` are NULL or can be written.
enum hotset_code hotset_detokenize(const struct hotset_session *session,
                                   const uint32_t *tokens,
                                   size_t n_tokens,
                                   char *text,
                                   size_t capacity,
                                   size_t *len,
                                   struct hotset_error **error);

// Runs `prompt`, of `len` bytes, after the tokens that the session holds, then token after token, and calls `on_text` with each piece
// of the text, until the model, a limit or the callback ends it; `*finish` says which. Control tokens that are spelled out in the
// prompt are read as such. The session then holds prompt and text, but for the text's last token, which has not run yet.
//
// `options` may be NULL: all defaults.
//
// # Safety
// `session` is NULL or open, `prompt` is NULL or has `len` bytes, `options` is NULL or has the size that it says, `on_text` is NULL or
// takes `user`, and `finish` and `error` are NULL or can be written.
enum hotset_code hotset_generate(struct hotset_session *session,
                                 const char *prompt,
                                 size_t len,
                                 const struct hotset_text_options *options,
                                 hotset_on_text on_text,
                                 void *user,
                                 enum hotset_finish *finish,
                                 struct hotset_error **error);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* HOTSET_H */
