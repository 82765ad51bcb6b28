-- +goose Up

-- Names and addresses, sealed as blocks are but for their months: who lives
-- somewhere for long stays known when old readings are erased. The blind index
-- tells which metering points are at the same address, and not at which.

CREATE TABLE sealed_identity (
    ean         bigint      NOT NULL,
    field       smallint    NOT NULL,
    day         date        NOT NULL,
    version     integer     NOT NULL CHECK (version > 0),
    key_id      uuid        NOT NULL,
    content_mac bytea       NOT NULL CHECK (octet_length(content_mac) = 32),
    ciphertext  bytea       NOT NULL CHECK (octet_length(ciphertext) BETWEEN 1 AND 1024),
    sealed_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (ean, day, version)
);
COMMENT ON TABLE  sealed_identity IS 'Name and address of who lives or lived at a metering point, encrypted. Corrections are new versions; the highest counts. Insert only.';
COMMENT ON COLUMN sealed_identity.ean IS 'EAN-18 of the metering point.';
COMMENT ON COLUMN sealed_identity.field IS 'Code of identities in the market profile; part of the AAD.';
COMMENT ON COLUMN sealed_identity.day IS 'First local day of the customer''s occupancy; part of the AAD.';
COMMENT ON COLUMN sealed_identity.version IS 'Version, 1, 2, ...; part of the AAD.';
COMMENT ON COLUMN sealed_identity.key_id IS 'Data key of class 3 it is sealed under; part of the AAD.';
COMMENT ON COLUMN sealed_identity.content_mac IS 'HMAC-SHA-256 by the HSM over EAN, field, day and plaintext; equal means equal content. Zeros once the key is erased.';
COMMENT ON COLUMN sealed_identity.ciphertext IS 'Format, suite, key id, IV, AES-256-GCM ciphertext and tag, always of one length.';
COMMENT ON COLUMN sealed_identity.sealed_at IS 'When it was stored.';

CREATE TABLE identity_index (
    ean         bigint NOT NULL,
    day         date   NOT NULL,
    blind_index bytea  NOT NULL CHECK (octet_length(blind_index) = 32),
    PRIMARY KEY (ean, day, blind_index)
);
CREATE INDEX identity_index_by_address ON identity_index (blind_index, ean);
COMMENT ON TABLE  identity_index IS 'Blind index of addresses. Not evidence: what is opened says whether it is the address. Removed when the data key is erased.';
COMMENT ON COLUMN identity_index.ean IS 'EAN-18 of the metering point.';
COMMENT ON COLUMN identity_index.day IS 'First local day of the customer''s occupancy, as in sealed_identity.';
COMMENT ON COLUMN identity_index.blind_index IS 'HMAC-SHA-256 by the HSM, under a key for nothing else, over postcode and house number.';

COMMENT ON COLUMN data_key.class IS 'What it covers: 1 registers, 2 intervals, 3 identity (package meter).';
COMMENT ON COLUMN data_key.month IS 'Local month of the days it covers, counted from January 1970; of an identity that of the first day of the occupancy.';

GRANT SELECT (ean, field, day, version, key_id, ciphertext) ON sealed_identity TO kluis_gateway;
GRANT SELECT ON identity_index TO kluis_gateway;

-- As with blocks, ingest sees all but the ciphertext. The blind index it adds
-- and cannot read: it would be a list to try addresses on.
GRANT SELECT (ean, field, day, version, key_id, content_mac) ON sealed_identity TO kluis_ingest;
GRANT INSERT (ean, field, day, version, key_id, content_mac, ciphertext) ON sealed_identity TO kluis_ingest;
GRANT INSERT (ean, day, blind_index) ON identity_index TO kluis_ingest;

GRANT SELECT, UPDATE (key_id, ciphertext, content_mac) ON sealed_identity TO kluis_custodian;
GRANT SELECT (ean, day), DELETE ON identity_index TO kluis_custodian;

GRANT SELECT (ean, field, day, version, ciphertext) ON sealed_identity TO kluis_auditor;

-- +goose Down
DROP TABLE identity_index, sealed_identity;
