-- +goose Up

-- Steps of the consent life cycle come through the gateway: it stores what a
-- cryptoserver sealed. A row that no seal key signed gives nobody anything; it
-- can only keep a metering point from being served until it is removed.
GRANT INSERT (ean, version, file, sealed_at) ON legal_file TO kluis_gateway;
GRANT INSERT, DELETE ON consent TO kluis_gateway;

CREATE TABLE idempotency_key (
    gln        bigint      NOT NULL,
    key_digest bytea       NOT NULL CHECK (octet_length(key_digest) = 32),
    request    bytea       NOT NULL CHECK (octet_length(request) = 32),
    consent_id uuid        NOT NULL,
    stored_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (gln, key_digest)
);
COMMENT ON TABLE  idempotency_key IS 'Requests that changed something, by the key their caller gave, so that one sent again changes nothing. Stored with the change, in one transaction. Insert only.';
COMMENT ON COLUMN idempotency_key.gln IS 'GLN of the caller: keys of different callers never meet.';
COMMENT ON COLUMN idempotency_key.key_digest IS 'SHA-256 of the Idempotency-Key header.';
COMMENT ON COLUMN idempotency_key.request IS 'SHA-256 of what was asked: operation, consent and body, so that another request under the same key is refused.';
COMMENT ON COLUMN idempotency_key.consent_id IS 'Consent changed.';
COMMENT ON COLUMN idempotency_key.stored_at IS 'When it was stored.';
GRANT SELECT, INSERT (gln, key_digest, request, consent_id) ON idempotency_key TO kluis_gateway;

-- A consent is found by its id alone: the id names no metering point.
CREATE INDEX consent_by_id ON consent (consent_id, gln);
COMMENT ON COLUMN consent.state IS '1 requested, 2 active, 3 rejected, 4 revoked (package authz); that it expired or lapsed follows from times.';

-- Records are read back in pages: none is larger than one can be.
ALTER TABLE access_log
    ADD CONSTRAINT access_log_sizes CHECK (octet_length(record) BETWEEN 1 AND 262144 AND octet_length(receipt) <= 4096);

-- What was read of a metering point, latest first, for its customer.
CREATE INDEX access_log_by_time ON access_log (ean, recorded_at DESC, interaction_id);
GRANT SELECT (ean, recorded_at, interaction_id, gln, outcome, record, receipt) ON access_log TO kluis_gateway;
COMMENT ON COLUMN access_log.outcome IS '1 given, 2 given in part, 3 all withheld, 4 no relation, 5 failed after the decision, 6 refused (package audit).';

-- +goose Down
REVOKE INSERT (ean, version, file, sealed_at) ON legal_file FROM kluis_gateway;
REVOKE INSERT, DELETE ON consent FROM kluis_gateway;
REVOKE SELECT (ean, recorded_at, interaction_id, gln, outcome, record, receipt) ON access_log FROM kluis_gateway;
DROP TABLE idempotency_key;
DROP INDEX consent_by_id, access_log_by_time;
ALTER TABLE access_log DROP CONSTRAINT access_log_sizes;
