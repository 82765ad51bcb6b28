-- +goose Up

-- The key custodian's tables and rights. The control feed is evidence by its
-- chain and its signed heads; the tombstones are an index of it.

CREATE TABLE control_entry (
    sequence    bigint      NOT NULL PRIMARY KEY CHECK (sequence > 0),
    entry       bytea       NOT NULL CHECK (octet_length(entry) BETWEEN 1 AND 131072),
    head        bytea       NOT NULL CHECK (octet_length(head) BETWEEN 1 AND 1024),
    appended_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE  control_entry IS 'The control feed: which KEK epoch is active, which data keys are erased. Insert only: two writers of one entry collide here.';
COMMENT ON COLUMN control_entry.sequence IS 'Number of the entry, 1, 2, ...';
COMMENT ON COLUMN control_entry.entry IS 'Canonical control entry (package control).';
COMMENT ON COLUMN control_entry.head IS 'Head signed when it was appended; of an erasure, entry and head are the tombstone.';
COMMENT ON COLUMN control_entry.appended_at IS 'When it was stored.';

CREATE TABLE control_heartbeat (
    one  boolean NOT NULL PRIMARY KEY DEFAULT true CHECK (one),
    head bytea   NOT NULL CHECK (octet_length(head) BETWEEN 1 AND 1024)
);
COMMENT ON TABLE  control_heartbeat IS 'The newest signed head of the control feed, one row, for whoever wants to see that it goes on.';
COMMENT ON COLUMN control_heartbeat.one IS 'Always true.';
COMMENT ON COLUMN control_heartbeat.head IS 'Signed head (package control).';

CREATE TABLE key_tombstone (
    ean        bigint      NOT NULL,
    key_id     uuid        NOT NULL,
    kek_epoch  integer     NOT NULL CHECK (kek_epoch > 0),
    sequence   bigint      CHECK (sequence > 0),
    deleted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (ean, key_id)
);
CREATE INDEX key_tombstone_retired ON key_tombstone (deleted_at) WHERE sequence IS NULL;
COMMENT ON TABLE  key_tombstone IS 'Data keys that were deleted. An index: the control feed says what is erased.';
COMMENT ON COLUMN key_tombstone.ean IS 'EAN-18 of the metering point.';
COMMENT ON COLUMN key_tombstone.key_id IS 'Identifier the data key had.';
COMMENT ON COLUMN key_tombstone.kek_epoch IS 'Epoch of the KEK that wrapped it: while that exists, a backup of the row opens.';
COMMENT ON COLUMN key_tombstone.sequence IS 'Entry of the control feed that erases it; null while it is only replaced.';
COMMENT ON COLUMN key_tombstone.deleted_at IS 'When its row was deleted.';

GRANT USAGE ON SCHEMA public TO kluis_custodian;
-- +goose StatementBegin
DO $$ BEGIN
    EXECUTE format('GRANT CONNECT ON DATABASE %I TO kluis_custodian', current_database());
END $$;
-- +goose StatementEnd

-- The custodian adds to the feed, which it cannot change. Of data keys and of
-- blocks it can change what rewrapping, resealing and erasure change, and no
-- more: not what they are of. It sees nothing of the legal facts and the log.
GRANT SELECT ON control_entry, control_heartbeat TO kluis_custodian;
GRANT INSERT (sequence, entry, head) ON control_entry TO kluis_custodian;
GRANT INSERT (head), UPDATE (head) ON control_heartbeat TO kluis_custodian;
GRANT SELECT, INSERT (ean, key_id, kek_epoch, sequence), UPDATE (sequence) ON key_tombstone TO kluis_custodian;
GRANT SELECT, DELETE, INSERT (ean, key_id, class, month, occupancy, kek_epoch, wrapped, mac), UPDATE (kek_epoch, wrapped, mac) ON data_key TO kluis_custodian;
GRANT SELECT, UPDATE (key_id, ciphertext, content_mac) ON sealed_block TO kluis_custodian;

-- +goose Down
DROP TABLE key_tombstone, control_heartbeat, control_entry;
REVOKE ALL ON data_key, sealed_block FROM kluis_custodian;
REVOKE USAGE ON SCHEMA public FROM kluis_custodian;
