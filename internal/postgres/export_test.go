package postgres

import (
	"context"

	"github.com/jmoiron/sqlx"
)

// The statements whose plans the tests look at.
const (
	QueryBlocks     = queryBlockColumns // and so the rows in it
	QueryKeys       = queryKeys
	QueryStored     = queryStored
	QueryCandidates = queryCandidates
	QueryHeads      = queryHeads
	QueryStoredFile = queryStoredFile
	QueryConsent    = queryConsent
	QueryKeyed      = queryIdempotency
	QueryAccessLog  = queryAccessLog
	QuerySuppliers  = querySuppliers
	QueryWith       = queryRecordsWith
	QueryRegister   = queryRegister
	QueryUsage      = queryUsage
	QueryScan       = queryScan
	QueryCount      = queryCount
	QueryUnder      = queryUnder
	QueryDelete     = queryDelete
	ExecBlank       = execBlank
	ExecRewrapped   = execRewrapped
	ExecResealed    = execResealed

	QueryWithSupplier = queryRecordsWithSupplier

	QueryArrivedReadings = queryArrivedReadings
	QueryReadingsEnd     = queryReadingsEnd
	QueryArrivedFiles    = queryArrivedFiles
	QueryFilesEnd        = queryFilesEnd
	QueryBasisDays       = queryBasisDays
	QueryExpired         = queryExpired
	QueryMarkAt          = queryMarkAt
	QueryMarkLag         = queryMarkLag
)

// Roles as the constructors want them.
var Roles = []string{roleGateway, roleIssuer, roleIngest, roleRegistrar, roleCustodian, roleAuditor, rolePortal}

var (
	Wrap          = wrap
	ChangedOf     = changedOf
	EncodeChanged = encodeChanged
	ParseChanged  = parseChanged
)

// Transact runs f in a transaction of ingest's.
func (i *Ingest) Transact(ctx context.Context, f func(ctx context.Context, tx *sqlx.Tx) error) error {
	return i.transact(ctx, "test", f)
}
