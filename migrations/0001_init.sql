-- +goose Up

-- Runs as kluis_owner, which owns the database. One further role per process,
-- none of which owns anything: migrations.EnsureRoles made them before the
-- first migration (roles belong to the cluster). What a role may do is granted
-- at the end; PUBLIC may nothing.
--
-- The EAN leads every primary and unique key of a metering point's tables, and
-- no foreign key crosses it, so that they can be partitioned and distributed.

CREATE TABLE supplier (
    gln         bigint      NOT NULL,
    version     bigint      NOT NULL CHECK (version > 0),
    record      bytea       NOT NULL CHECK (octet_length(record) BETWEEN 1 AND 1048576),
    sealed_at   timestamptz NOT NULL,
    PRIMARY KEY (gln, version)
);
COMMENT ON TABLE  supplier IS 'Sealed supplier records, all versions; the highest counts. Insert only.';
COMMENT ON COLUMN supplier.gln IS 'Global Location Number (EAN-13) of the supplier; equals its client_id and the sub of its tokens.';
COMMENT ON COLUMN supplier.version IS 'Version of the record, 1, 2, ...; equals the version inside it.';
COMMENT ON COLUMN supplier.record IS 'Sealed record (name, certificates, scopes, suspension), signed by a seal key; the only input to decisions.';
COMMENT ON COLUMN supplier.sealed_at IS 'When it was sealed; a copy of the fact inside the record.';

CREATE TABLE metering_point (
    ean           bigint      NOT NULL PRIMARY KEY,
    commodity     smallint    NOT NULL CHECK (commodity IN (1, 2)),
    registered_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE  metering_point IS 'Metering points known to the grid operator; an index for lists, not evidence.';
COMMENT ON COLUMN metering_point.ean IS 'EAN-18 of the metering point as a number.';
COMMENT ON COLUMN metering_point.commodity IS '1 electricity, 2 gas (package meter).';
COMMENT ON COLUMN metering_point.registered_at IS 'When Kluis first heard of it.';

CREATE TABLE legal_file (
    ean       bigint      NOT NULL,
    version   bigint      NOT NULL CHECK (version > 0),
    file      bytea       NOT NULL CHECK (octet_length(file) BETWEEN 1 AND 1049600),
    sealed_at timestamptz NOT NULL,
    PRIMARY KEY (ean, version)
);
COMMENT ON TABLE  legal_file IS 'Sealed legal files, all versions; the highest counts. Insert only: two writers of one version collide here.';
COMMENT ON COLUMN legal_file.ean IS 'EAN-18 of the metering point.';
COMMENT ON COLUMN legal_file.version IS 'Version, 1, 2, ...; equals the version inside the file.';
COMMENT ON COLUMN legal_file.file IS 'Sealed legal file: supply periods, occupancy, consents, opt-out, signed by a seal key; the only input to Decide.';
COMMENT ON COLUMN legal_file.sealed_at IS 'When it was sealed; a copy of the fact inside the file.';

CREATE TABLE supply_period (
    ean      bigint NOT NULL,
    gln      bigint NOT NULL,
    from_day date   NOT NULL,
    to_day   date,
    PRIMARY KEY (ean, gln, from_day),
    CHECK (to_day > from_day)
);
CREATE INDEX supply_period_by_supplier ON supply_period (gln, ean);
COMMENT ON TABLE  supply_period IS 'Index of the supply periods in the current legal files, for lists. Not evidence: a row added by hand gives nothing.';
COMMENT ON COLUMN supply_period.ean IS 'EAN-18 of the metering point.';
COMMENT ON COLUMN supply_period.gln IS 'GLN of the supplier.';
COMMENT ON COLUMN supply_period.from_day IS 'First local day of supply.';
COMMENT ON COLUMN supply_period.to_day IS 'First local day after supply; null while it lasts.';

CREATE TABLE consent (
    ean         bigint      NOT NULL,
    consent_id  uuid        NOT NULL,
    gln         bigint      NOT NULL,
    state       smallint    NOT NULL,
    from_day    date        NOT NULL,
    to_day      date,
    valid_until timestamptz NOT NULL,
    PRIMARY KEY (ean, consent_id),
    CHECK (to_day > from_day)
);
CREATE INDEX consent_by_supplier ON consent (gln, ean);
COMMENT ON TABLE  consent IS 'Index of the consents in the current legal files, for lists. Not evidence.';
COMMENT ON COLUMN consent.ean IS 'EAN-18 of the metering point.';
COMMENT ON COLUMN consent.consent_id IS 'Identifier of the consent (UUID).';
COMMENT ON COLUMN consent.gln IS 'GLN of the supplier that holds it.';
COMMENT ON COLUMN consent.state IS '2 active, 4 revoked (package authz).';
COMMENT ON COLUMN consent.from_day IS 'First local day it covers.';
COMMENT ON COLUMN consent.to_day IS 'First local day it no longer covers; null when open.';
COMMENT ON COLUMN consent.valid_until IS 'Instant from which it may no longer be used.';

CREATE TABLE data_key (
    ean        bigint      NOT NULL,
    key_id     uuid        NOT NULL,
    class      smallint    NOT NULL,
    month      integer     NOT NULL,
    occupancy  integer     NOT NULL,
    kek_epoch  integer     NOT NULL CHECK (kek_epoch > 0),
    wrapped    bytea       NOT NULL CHECK (octet_length(wrapped) BETWEEN 1 AND 512),
    mac        bytea       NOT NULL CHECK (octet_length(mac) = 32),
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (ean, key_id),
    UNIQUE (ean, class, month, occupancy)
);
COMMENT ON TABLE  data_key IS 'Data keys, each wrapped under a KEK that never leaves the HSMs.';
COMMENT ON COLUMN data_key.ean IS 'EAN-18 of the metering point.';
COMMENT ON COLUMN data_key.key_id IS 'Random 128-bit identifier; part of the AAD of every block sealed under the key.';
COMMENT ON COLUMN data_key.class IS 'Class of fields it covers: 1 registers, 2 intervals (package meter).';
COMMENT ON COLUMN data_key.month IS 'Local month of the days it covers, counted from January 1970.';
COMMENT ON COLUMN data_key.occupancy IS 'First day of the occupancy it belongs to, counted from 1970-01-01; 0 when none is known.';
COMMENT ON COLUMN data_key.kek_epoch IS 'Epoch of the KEK that wraps it.';
COMMENT ON COLUMN data_key.wrapped IS 'AES key wrap (RFC 3394) of the data key.';
COMMENT ON COLUMN data_key.mac IS 'HMAC-SHA-256 by the HSM over all the columns above; checked before anything is sealed under the key.';
COMMENT ON COLUMN data_key.created_at IS 'When it was minted.';

CREATE TABLE sealed_block (
    ean         bigint      NOT NULL,
    field       smallint    NOT NULL,
    day         date        NOT NULL,
    version     integer     NOT NULL CHECK (version > 0),
    resolution  smallint    NOT NULL,
    key_id      uuid        NOT NULL,
    value_count smallint    NOT NULL CHECK (value_count >= 0),
    content_mac bytea       NOT NULL CHECK (octet_length(content_mac) = 32),
    ciphertext  bytea       NOT NULL CHECK (octet_length(ciphertext) BETWEEN 1 AND 16384),
    sealed_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (ean, field, day, version)
) PARTITION BY RANGE (day);
-- One partition per calendar month, which nobody but the owner makes or has any
-- right to (EnsureMonths); days of no such month lie here.
CREATE TABLE sealed_block_default PARTITION OF sealed_block DEFAULT;
COMMENT ON TABLE  sealed_block_default IS 'Sealed blocks of days whose month has no partition. Empty, unless months were not made in time.';
COMMENT ON TABLE  sealed_block IS 'One field of one metering point for one local day, encrypted. Corrections are new versions; the highest counts. Insert only.';
COMMENT ON COLUMN sealed_block.ean IS 'EAN-18 of the metering point.';
COMMENT ON COLUMN sealed_block.field IS 'Code of the field in the market profile''s catalogue.';
COMMENT ON COLUMN sealed_block.day IS 'Local calendar day.';
COMMENT ON COLUMN sealed_block.version IS 'Version of the block, 1, 2, ...; part of its AAD.';
COMMENT ON COLUMN sealed_block.resolution IS '1 PT15M, 2 PT1H, 3 P1D (package meter); part of its AAD.';
COMMENT ON COLUMN sealed_block.key_id IS 'Data key it is sealed under; part of its AAD.';
COMMENT ON COLUMN sealed_block.value_count IS 'How many values are not null; lets ingest notice a poorer correction without opening anything.';
COMMENT ON COLUMN sealed_block.content_mac IS 'HMAC-SHA-256 by the HSM over EAN, field, day, resolution and plaintext; equal means equal content.';
COMMENT ON COLUMN sealed_block.ciphertext IS 'Format, suite, key id, IV, AES-256-GCM ciphertext and tag.';
COMMENT ON COLUMN sealed_block.sealed_at IS 'When it was stored.';

CREATE TABLE ingest_batch (
    ean       bigint      NOT NULL,
    batch_id  uuid        NOT NULL,
    keys      integer     NOT NULL CHECK (keys >= 0),
    blocks    integer     NOT NULL CHECK (blocks >= 0),
    stored_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (ean, batch_id)
);
CREATE INDEX ingest_batch_by_time ON ingest_batch (stored_at);
COMMENT ON TABLE  ingest_batch IS 'What was stored, and when, one row per batch and metering point; says how fresh the readings are. Insert only.';
COMMENT ON COLUMN ingest_batch.ean IS 'EAN-18 of the metering point.';
COMMENT ON COLUMN ingest_batch.batch_id IS 'Random identifier of the batch, which is one transaction.';
COMMENT ON COLUMN ingest_batch.keys IS 'Data keys stored.';
COMMENT ON COLUMN ingest_batch.blocks IS 'Blocks stored.';
COMMENT ON COLUMN ingest_batch.stored_at IS 'When it was stored.';

CREATE TABLE access_log (
    ean            bigint      NOT NULL,
    recorded_at    timestamptz NOT NULL DEFAULT now(),
    interaction_id uuid        NOT NULL,
    gln            bigint      NOT NULL,
    outcome        smallint    NOT NULL,
    record         bytea       NOT NULL,
    receipt        bytea       NOT NULL,
    salt           bytea       NOT NULL CHECK (octet_length(salt) = 16),
    PRIMARY KEY (ean, interaction_id)
);
COMMENT ON TABLE  access_log IS 'Every access and every refusal, written before the answer leaves. Insert only.';
COMMENT ON COLUMN access_log.ean IS 'EAN-18 asked for, whether known or not; 0 for a list.';
COMMENT ON COLUMN access_log.recorded_at IS 'When it was recorded.';
COMMENT ON COLUMN access_log.interaction_id IS 'The interactionId of the answer.';
COMMENT ON COLUMN access_log.gln IS 'GLN of the caller.';
COMMENT ON COLUMN access_log.outcome IS '1 given, 2 given in part, 3 all withheld, 4 no relation, 5 failed after the decision; of dry runs 6 told, 7 no relation, 8 failed (package audit).';
COMMENT ON COLUMN access_log.record IS 'Canonical access record: who, what, when, why, decision (package audit).';
COMMENT ON COLUMN access_log.receipt IS 'Receipt of the cryptoserver, verbatim; empty when nothing was opened.';
COMMENT ON COLUMN access_log.salt IS '16 random bytes, so that a digest of the record tells nothing of it.';

COMMENT ON TABLE  goose_db_version IS 'Migrations applied; kept by goose.';
COMMENT ON COLUMN goose_db_version.id IS 'Sequence number of the entry.';
COMMENT ON COLUMN goose_db_version.version_id IS 'Number of the migration.';
COMMENT ON COLUMN goose_db_version.is_applied IS 'Whether it was applied.';
COMMENT ON COLUMN goose_db_version.tstamp IS 'When, in the time zone of the session that applied it.';

REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO kluis_gateway, kluis_issuer, kluis_ingest, kluis_registrar;
-- +goose StatementBegin
DO $$ BEGIN
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO kluis_gateway, kluis_issuer, kluis_ingest, kluis_registrar', current_database());
END $$;
-- +goose StatementEnd

-- Times of storing are the database's own: no role but the owner may say them.

-- The gateway reads what a decision needs and appends to the log.
GRANT SELECT ON supplier, legal_file, supply_period, consent, data_key, sealed_block TO kluis_gateway;
GRANT SELECT (stored_at) ON ingest_batch TO kluis_gateway;
GRANT INSERT (ean, interaction_id, gln, outcome, record, receipt, salt) ON access_log TO kluis_gateway;

GRANT SELECT ON supplier TO kluis_issuer;

-- Ingest sees of a block all but its ciphertext, and can only add.
GRANT SELECT ON metering_point, legal_file, data_key TO kluis_ingest;
GRANT SELECT (ean, field, day, version, resolution, key_id, value_count, content_mac, sealed_at) ON sealed_block TO kluis_ingest;
GRANT INSERT (ean, key_id, class, month, occupancy, kek_epoch, wrapped, mac) ON data_key TO kluis_ingest;
GRANT INSERT (ean, field, day, version, resolution, key_id, value_count, content_mac, ciphertext) ON sealed_block TO kluis_ingest;
GRANT INSERT (ean, batch_id, keys, blocks) ON ingest_batch TO kluis_ingest;

-- The registrar adds versions of sealed facts; only their indexes may change.
GRANT SELECT, INSERT ON supplier, legal_file TO kluis_registrar;
GRANT SELECT, INSERT (ean, commodity) ON metering_point TO kluis_registrar;
GRANT SELECT, INSERT, DELETE ON supply_period, consent TO kluis_registrar;

-- +goose Down
DROP TABLE access_log, ingest_batch, sealed_block, data_key, consent, supply_period, legal_file, metering_point, supplier;
