/* The options of engramd, one row each. A file that includes this defines the CONF_ macros it needs; the
 * others are defined empty here and all are undefined at the end.
 *   CONF_TEXT(id, section, key, default, form, liveness, help); form: what kind of text (conf_option.h)
 *   CONF_WORD(id, section, key, default, words, liveness, help); one of the words, "auto avx2 ..."
 *   CONF_INT/REAL/SIZE/TIME(id, section, key, default, min, max, liveness, help); sizes and times as text
 *   CONF_BOOL(id, section, key, default, liveness, help)
 * A new row needs code outside conf/ that reads it: the lint fails otherwise.                          */
#ifndef CONF_TEXT
#define CONF_TEXT(...)
#endif
#ifndef CONF_WORD
#define CONF_WORD(...)
#endif
#ifndef CONF_INT
#define CONF_INT(...)
#endif
#ifndef CONF_REAL
#define CONF_REAL(...)
#endif
#ifndef CONF_SIZE
#define CONF_SIZE(...)
#endif
#ifndef CONF_TIME
#define CONF_TIME(...)
#endif
#ifndef CONF_BOOL
#define CONF_BOOL(...)
#endif

CONF_TEXT(device, "", "device", "auto", CONF_DEVICE, CONF_RESTART, "cpu, cuda:N, or auto: a GPU when the CUDA plugin finds one, else cpu.")

CONF_TEXT(server_listen, "server", "listen", "127.0.0.1:8080", CONF_ADDRESS, CONF_RESTART, "Address and port of the HTTP API, host:port, [v6]:port; port 0 picks a free one and prints it.")
CONF_INT(server_max_connections, "server", "max_connections", 1024, 1, 65536, CONF_RESTART, "Connections beyond this are answered 503 and closed.")
CONF_SIZE(server_max_header_size, "server", "max_header_size", "16KiB", "1KiB", "1MiB", CONF_RESTART, "Largest request head; beyond it 431.")
CONF_SIZE(server_max_body_size, "server", "max_body_size", "8MiB", "1KiB", "1GiB", CONF_RESTART, "Largest request body; beyond it 413.")
CONF_TIME(server_read_timeout, "server", "read_timeout", "30s", "100ms", "1h", CONF_RESTART, "A request must arrive completely within this time, else 408.")
CONF_TIME(server_idle_timeout, "server", "idle_timeout", "75s", "100ms", "1d", CONF_RESTART, "An idle keep-alive connection is closed after this time.")
CONF_TIME(server_write_timeout, "server", "write_timeout", "30s", "100ms", "1h", CONF_RESTART, "A client that takes no byte for this long is dropped and its request cancelled.")
CONF_SIZE(server_max_output_buffer, "server", "max_output_buffer", "1MiB", "4KiB", "1GiB", CONF_RESTART, "Bytes waiting for one slow client before it is dropped.")
CONF_TIME(server_ping_interval, "server", "ping_interval", "15s", "1s", "1h", CONF_RESTART, "A stream that is silent this long gets an SSE comment.")
CONF_TIME(server_shutdown_timeout, "server", "shutdown_timeout", "30s", "0s", "1h", CONF_RESTART, "How long SIGTERM waits for running requests.")
CONF_TEXT(server_admin_socket, "server", "admin_socket", "", CONF_PATH, CONF_RESTART, "UNIX socket of the admin interface; empty: $RUNTIME_DIRECTORY/engramctl.sock under systemd, else none.")
CONF_BOOL(server_strict_requests, "server", "strict_requests", false, CONF_RESTART, "Unknown request fields are 400 instead of ignored.")

CONF_TEXT(model_path, "model", "path", "", CONF_PATH, CONF_RESTART, "Folder of the checkpoint (config.json, tokenizer.json, *.safetensors).")
CONF_TEXT(model_name, "model", "name", "", CONF_ANY, CONF_RESTART, "Name of the model in the API; empty: the folder's name.")

CONF_INT(cpu_threads, "cpu", "threads", 0, 0, 1024, CONF_RESTART, "Compute threads of the cpu device; 0: one per CPU.")
CONF_WORD(cpu_isa, "cpu", "isa", "auto", "auto avx512 avx2 portable", CONF_RESTART, "Vector kernels; auto: the widest this CPU has.")

CONF_INT(engine_max_sequences, "engine", "max_sequences", 64, 1, 4096, CONF_RESTART, "Sequences in one batch.")
CONF_INT(engine_prefill_chunk, "engine", "prefill_chunk", 256, 16, 8192, CONF_RESTART, "Prompt tokens of one sequence computed in one step.")
CONF_INT(engine_max_queue, "engine", "max_queue", 256, 0, 1000000, CONF_RESTART, "Choices waiting for the batch before requests are answered 429.")
CONF_SIZE(engine_kv_size, "engine", "kv_size", "256MiB", "64KiB", "16TiB", CONF_RESTART, "Memory of the KV cache.")
CONF_INT(engine_max_context, "engine", "max_context", 0, 0, 16777216, CONF_RESTART, "Longest prompt plus completion in tokens; 0: what the model was made for.")
CONF_BOOL(engine_prefix_cache, "engine", "prefix_cache", true, CONF_RESTART, "KV pages of prompts are kept for prompts that begin alike, in multiples of engine.prefill_chunk; Engram states beside them take up to a sixteenth of engine.kv_size.")
CONF_INT(engine_default_max_tokens, "engine", "default_max_tokens", 16, 1, 1000000, CONF_RESTART, "max_tokens of a request that names none.")

CONF_SIZE(tier_hbm_size, "tier.hbm", "size", "1GiB", "0B", "16TiB", CONF_LIVE, "Device memory for hot bundles.")
CONF_SIZE(tier_ram_size, "tier.ram", "size", "8GiB", "0B", "16TiB", CONF_LIVE, "Host memory for warm bundles, index included.")
CONF_REAL(tier_ram_row_share, "tier.ram", "row_share", 0.9, 0, 1, CONF_RESTART, "Share of tier.ram.size that holds table rows, early layers first; the rest holds bundles of N-grams seen before.")
CONF_BOOL(tier_ram_tables, "tier.ram", "tables", true, CONF_RESTART, "Load whole tables into tier.ram.size in the background, early layers first, as many as fit.")
CONF_INT(tier_nvme_depth, "tier.nvme", "depth", 128, 1, 4096, CONF_RESTART, "Reads in flight at a time.")
CONF_BOOL(tier_nvme_direct, "tier.nvme", "direct", true, CONF_RESTART, "O_DIRECT where the file system takes it.")
CONF_INT(tier_nvme_retries, "tier.nvme", "retries", 2, 0, 100, CONF_RESTART, "Times a failed read is tried again before its requests fail.")
CONF_TIME(tier_nvme_timeout, "tier.nvme", "timeout", "10s", "1ms", "10m", CONF_RESTART, "Longest wait of a step for rows before its requests fail.")
CONF_TEXT(tier_nvme_fault, "tier.nvme", "fault", "", CONF_ANY, CONF_RESTART, "For tests: delay=TIME, fail=1/N or fail-from=N with the delaying and failing stores on top of the disk.")

CONF_WORD(log_level, "log", "level", "info", "error warning info debug", CONF_RESTART, "Lowest level that is written.")

#undef CONF_TEXT
#undef CONF_WORD
#undef CONF_INT
#undef CONF_REAL
#undef CONF_SIZE
#undef CONF_TIME
#undef CONF_BOOL
