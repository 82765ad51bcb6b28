package postgres

// The statements for many, whose plans the tests look at.
const (
	QueryStoredFiles    = queryStoredFiles
	QueryVersions       = queryVersions
	QueryCandidateFiles = queryCandidateFiles
	QueryManyBlocks     = queryManyBlocks
	QueryManyAsOf       = queryManyAsOf
	QueryManyKeys       = queryManyKeys
)
