-- +goose Up

-- Months of sealed_block, rewritten in the order of the metering points when
-- they are closed. All of this is the owner's: no process has any right to it.

CREATE TABLE storage_month (
    month        date        NOT NULL PRIMARY KEY CHECK (month = date_trunc('month', month)),
    compacted_at timestamptz,
    blocks       bigint      CHECK (blocks >= 0),
    source       text,
    target       text        CHECK ((source IS NULL) = (target IS NULL)),
    copied_to    bigint,
    compared_to  bigint,
    compared     bigint      NOT NULL DEFAULT 0 CHECK (compared >= 0)
);
COMMENT ON TABLE  storage_month IS 'Months of sealed_block that were put in the order of the metering points, or are being so. A note to the owner.';
COMMENT ON COLUMN storage_month.month IS 'First day of the month.';
COMMENT ON COLUMN storage_month.compacted_at IS 'When it was put in order last; null: never.';
COMMENT ON COLUMN storage_month.blocks IS 'Blocks it had then.';
COMMENT ON COLUMN storage_month.source IS 'Partition that is being copied; null: none.';
COMMENT ON COLUMN storage_month.target IS 'Table it is being copied into, which nobody reads yet.';
COMMENT ON COLUMN storage_month.copied_to IS 'Metering point up to which it is copied; null: nothing is.';
COMMENT ON COLUMN storage_month.compared_to IS 'Metering point up to which the copy was compared; null: nothing was.';
COMMENT ON COLUMN storage_month.compared IS 'Blocks that were compared.';

CREATE TABLE storage_change (
    ean     bigint   NOT NULL,
    field   smallint NOT NULL,
    day     date     NOT NULL,
    version integer  NOT NULL
);
CREATE INDEX storage_change_by_day ON storage_change (day);
COMMENT ON TABLE  storage_change IS 'Blocks that were stored or changed while their month was copied, to be copied once more. Kept by a trigger of the partition that is copied.';
COMMENT ON COLUMN storage_change.ean IS 'EAN-18 of the metering point.';
COMMENT ON COLUMN storage_change.field IS 'Field of the block.';
COMMENT ON COLUMN storage_change.day IS 'Day of the block.';
COMMENT ON COLUMN storage_change.version IS 'Version of the block.';

-- Runs as the owner, because those that store and reseal blocks have no right to
-- the table it writes; it can be called by nobody, being a trigger's.
-- +goose StatementBegin
CREATE FUNCTION sealed_block_changed() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp AS $$
BEGIN
    IF TG_OP <> 'INSERT' THEN
        INSERT INTO storage_change (ean, field, day, version) VALUES (OLD.ean, OLD.field, OLD.day, OLD.version);
    END IF;
    IF TG_OP <> 'DELETE' AND (TG_OP = 'INSERT' OR (NEW.ean, NEW.field, NEW.day, NEW.version) <> (OLD.ean, OLD.field, OLD.day, OLD.version)) THEN
        INSERT INTO storage_change (ean, field, day, version) VALUES (NEW.ean, NEW.field, NEW.day, NEW.version);
    END IF;
    RETURN NULL;
END $$;
-- +goose StatementEnd
REVOKE ALL ON FUNCTION sealed_block_changed() FROM PUBLIC;

-- +goose Down
DROP FUNCTION sealed_block_changed() CASCADE;
DROP TABLE storage_change, storage_month;
