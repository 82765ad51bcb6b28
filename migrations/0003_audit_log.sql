-- +goose Up

-- The audit log: a Merkle tree over what must not be altered unnoticed, and
-- the auditor's rights. Nothing in these tables is evidence by being there:
-- what counts are the signed checkpoints, of which copies lie elsewhere.

-- arrived is how the auditor finds new rows. Of rows with an arrived below the
-- oldest transaction still running none can come any more; a time or a serial
-- number cannot say that, because they are given out before the commit. Rows
-- from before have 0: no row is rewritten.
ALTER TABLE access_log ADD COLUMN arrived xid8 NOT NULL DEFAULT '0';
ALTER TABLE access_log ALTER COLUMN arrived SET DEFAULT pg_current_xact_id();
CREATE INDEX access_log_by_arrival ON access_log (arrived, ean, interaction_id);
COMMENT ON COLUMN access_log.arrived IS 'Transaction that stored it, by which the auditor finds it; 0 before there was an audit log.';

ALTER TABLE legal_file ADD COLUMN arrived xid8 NOT NULL DEFAULT '0';
ALTER TABLE legal_file ALTER COLUMN arrived SET DEFAULT pg_current_xact_id();
CREATE INDEX legal_file_by_arrival ON legal_file (arrived, ean, version);
COMMENT ON COLUMN legal_file.arrived IS 'Transaction that stored it, by which the auditor finds it; 0 before there was an audit log.';

ALTER TABLE supplier ADD COLUMN arrived xid8 NOT NULL DEFAULT '0';
ALTER TABLE supplier ALTER COLUMN arrived SET DEFAULT pg_current_xact_id();
CREATE INDEX supplier_by_arrival ON supplier (arrived, gln, version);
COMMENT ON COLUMN supplier.arrived IS 'Transaction that stored it, by which the auditor finds it; 0 before there was an audit log.';

ALTER TABLE control_entry ADD COLUMN arrived xid8 NOT NULL DEFAULT '0';
ALTER TABLE control_entry ALTER COLUMN arrived SET DEFAULT pg_current_xact_id();
CREATE INDEX control_entry_by_arrival ON control_entry (arrived, sequence);
COMMENT ON COLUMN control_entry.arrived IS 'Transaction that stored it, by which the auditor finds it; 0 before there was an audit log.';

CREATE TABLE journal_entry (
    boot_id   uuid        NOT NULL,
    sequence  bigint      NOT NULL CHECK (sequence > 0),
    entry     bytea       NOT NULL CHECK (octet_length(entry) BETWEEN 1 AND 4194304),
    stored_at timestamptz NOT NULL DEFAULT now(),
    arrived   xid8        NOT NULL DEFAULT pg_current_xact_id(),
    PRIMARY KEY (boot_id, sequence)
);
CREATE INDEX journal_entry_by_arrival ON journal_entry (arrived, boot_id, sequence);
COMMENT ON TABLE  journal_entry IS 'Journals of the cryptoservers: every opening and every sealing, as the auditor fetched them from each server itself. Insert only.';
COMMENT ON COLUMN journal_entry.boot_id IS 'Boot of the cryptoserver; equals that in the entry.';
COMMENT ON COLUMN journal_entry.sequence IS 'Number of the entry since that boot, 1, 2, ...; equals that in the entry.';
COMMENT ON COLUMN journal_entry.entry IS 'Canonical receipt or seal event (package envelope); names the hash of the entry before it.';
COMMENT ON COLUMN journal_entry.stored_at IS 'When the auditor stored it.';
COMMENT ON COLUMN journal_entry.arrived IS 'Transaction that stored it.';

CREATE TABLE audit_statement (
    kind      smallint    NOT NULL CHECK (kind IN (6, 7)),
    boot_id   uuid        NOT NULL,
    sequence  bigint      NOT NULL CHECK (sequence >= 0),
    statement bytea       NOT NULL CHECK (octet_length(statement) BETWEEN 1 AND 65536),
    stored_at timestamptz NOT NULL DEFAULT now(),
    arrived   xid8        NOT NULL DEFAULT pg_current_xact_id(),
    PRIMARY KEY (boot_id, sequence, kind)
);
CREATE INDEX audit_statement_by_arrival ON audit_statement (arrived, boot_id, sequence);
COMMENT ON TABLE  audit_statement IS 'What the auditor itself saw: that a journal has ended, which sealed blocks were stored. Insert only.';
COMMENT ON COLUMN audit_statement.kind IS '6 end of a journal, 7 blocks seen stored (package auditlog/leaf).';
COMMENT ON COLUMN audit_statement.boot_id IS 'Boot of the cryptoserver it is of.';
COMMENT ON COLUMN audit_statement.sequence IS 'Last entry of the journal; the seal event whose blocks were seen.';
COMMENT ON COLUMN audit_statement.statement IS 'Canonical statement (package auditlog/leaf).';
COMMENT ON COLUMN audit_statement.stored_at IS 'When the auditor stored it.';
COMMENT ON COLUMN audit_statement.arrived IS 'Transaction that stored it.';

CREATE TABLE audit_leaf (
    index     bigint      NOT NULL PRIMARY KEY CHECK (index >= 0),
    kind      smallint    NOT NULL CHECK (kind BETWEEN 1 AND 7),
    id        uuid        NOT NULL,
    number    bigint      NOT NULL,
    version   bigint      NOT NULL,
    logged_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (id, number, version, kind)
);
COMMENT ON TABLE  audit_leaf IS 'Which row each leaf of the audit log is of. Insert only: two writers of one leaf collide here.';
COMMENT ON COLUMN audit_leaf.index IS 'Place in the tree, 0, 1, ...';
COMMENT ON COLUMN audit_leaf.kind IS '1 access record, 2 journal entry, 3 legal file, 4 supplier, 5 control entry, 6 end of a journal, 7 blocks seen stored.';
COMMENT ON COLUMN audit_leaf.id IS 'Interaction of an access record; boot of a journal entry or statement; else zero.';
COMMENT ON COLUMN audit_leaf.number IS 'EAN of an access record or legal file, GLN of a supplier; else 0.';
COMMENT ON COLUMN audit_leaf.version IS 'Version of a legal file or supplier, sequence of a journal entry, statement or control entry; else 0.';
COMMENT ON COLUMN audit_leaf.logged_at IS 'When it was logged.';

CREATE TABLE audit_hash (
    index bigint NOT NULL PRIMARY KEY CHECK (index >= 0),
    hash  bytea  NOT NULL CHECK (octet_length(hash) = 32)
);
COMMENT ON TABLE  audit_hash IS 'Hashes of the tree (RFC 6962) in the order of golang.org/x/mod/sumdb/tlog. Insert only.';
COMMENT ON COLUMN audit_hash.index IS 'Stored hash index (tlog.StoredHashIndex).';
COMMENT ON COLUMN audit_hash.hash IS 'Hash of a leaf, or of a complete subtree.';

CREATE TABLE audit_checkpoint (
    size      bigint      NOT NULL PRIMARY KEY CHECK (size > 0),
    note      bytea       NOT NULL CHECK (octet_length(note) BETWEEN 1 AND 4096),
    stored_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE  audit_checkpoint IS 'Signed heads of the tree. Insert only; the copies outside of this database are what counts.';
COMMENT ON COLUMN audit_checkpoint.size IS 'Leaves in the tree.';
COMMENT ON COLUMN audit_checkpoint.note IS 'Signed note: name of the log, size, root, time (package checkpoint).';
COMMENT ON COLUMN audit_checkpoint.stored_at IS 'When it was stored.';

CREATE TABLE audit_cursor (
    kind     smallint NOT NULL PRIMARY KEY,
    position bytea    NOT NULL CHECK (octet_length(position) BETWEEN 1 AND 256)
);
COMMENT ON TABLE  audit_cursor IS 'How far the auditor has looked for new rows of each kind. A note to itself, not evidence.';
COMMENT ON COLUMN audit_cursor.kind IS 'Kind of leaf (audit_leaf.kind).';
COMMENT ON COLUMN audit_cursor.position IS 'Place in the order of arrival (package postgres).';

GRANT USAGE ON SCHEMA public TO kluis_auditor;
-- +goose StatementBegin
DO $$ BEGIN
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO kluis_auditor', current_database());
END $$;
-- +goose StatementEnd

-- The auditor reads what it logs, and adds to the log, which it cannot change.
-- Of blocks it needs the ciphertext, for its digest; it sees no data key.
GRANT SELECT ON access_log, legal_file, supplier, control_entry TO kluis_auditor;
GRANT SELECT (ean, field, day, version, ciphertext) ON sealed_block TO kluis_auditor;
GRANT SELECT ON journal_entry, audit_statement, audit_leaf, audit_hash, audit_checkpoint, audit_cursor TO kluis_auditor;
GRANT INSERT (boot_id, sequence, entry) ON journal_entry TO kluis_auditor;
GRANT INSERT (kind, boot_id, sequence, statement) ON audit_statement TO kluis_auditor;
GRANT INSERT (index, kind, id, number, version) ON audit_leaf TO kluis_auditor;
GRANT INSERT ON audit_hash TO kluis_auditor;
GRANT INSERT (size, note) ON audit_checkpoint TO kluis_auditor;
GRANT INSERT, UPDATE (position) ON audit_cursor TO kluis_auditor;

-- Nobody says when a row of theirs arrived.
REVOKE INSERT ON supplier, legal_file FROM kluis_registrar;
GRANT INSERT (gln, version, record, sealed_at) ON supplier TO kluis_registrar;
GRANT INSERT (ean, version, file, sealed_at) ON legal_file TO kluis_registrar;

-- +goose Down
REVOKE INSERT (gln, version, record, sealed_at) ON supplier FROM kluis_registrar;
REVOKE INSERT (ean, version, file, sealed_at) ON legal_file FROM kluis_registrar;
GRANT INSERT ON supplier, legal_file TO kluis_registrar;
DROP TABLE audit_cursor, audit_checkpoint, audit_hash, audit_leaf, audit_statement, journal_entry;
ALTER TABLE control_entry DROP COLUMN arrived;
ALTER TABLE supplier DROP COLUMN arrived;
ALTER TABLE legal_file DROP COLUMN arrived;
ALTER TABLE access_log DROP COLUMN arrived;
REVOKE ALL ON access_log, legal_file, supplier, control_entry, sealed_block FROM kluis_auditor;
REVOKE USAGE ON SCHEMA public FROM kluis_auditor;
