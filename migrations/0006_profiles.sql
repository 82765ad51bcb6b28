-- +goose Up

-- What was decided names the market profile by its digest only. The bytes are
-- kept, so that a decision can be recomputed when the profile is another one.
-- Whatever is in here proves itself by its digest, which is checked again when
-- it is read.

CREATE TABLE market_profile (
    digest        bytea       NOT NULL PRIMARY KEY,
    profile       bytea       NOT NULL CHECK (octet_length(profile) BETWEEN 1 AND 1048576),
    first_used_at timestamptz NOT NULL DEFAULT now(),
    CHECK (digest = sha256(profile))
);
COMMENT ON TABLE  market_profile IS 'Market profiles that gateways decided by, all of them, for ever. Insert only.';
COMMENT ON COLUMN market_profile.digest IS 'SHA-256 of the profile; what access records and receipts name.';
COMMENT ON COLUMN market_profile.profile IS 'The profile file (YAML), byte for byte.';
COMMENT ON COLUMN market_profile.first_used_at IS 'When the first gateway started with it.';

-- A gateway adds its own at its start; who explains decisions reads them.
GRANT INSERT (digest, profile) ON market_profile TO kluis_gateway;
GRANT SELECT ON market_profile TO kluis_auditor;

-- +goose Down
DROP TABLE market_profile;
