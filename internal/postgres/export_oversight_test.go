package postgres

// The statements of oversight, whose plans the tests look at.
const (
	ExecHours         = execHours
	ExecLooks         = execLooks
	QueryHours        = queryHours
	QueryHoursOf      = queryHoursOf
	QueryBreadth      = queryBreadth
	QueryUnusualCount = queryUnusualCount
	QueryOverview     = queryOverview
	QueryBreadthOf    = queryBreadthOf
	QueryUnusual      = queryUnusual
	QueryCounted      = queryCounted
	QueryWhole        = queryWhole
	QueryNewest       = queryNewest
	QueryFound        = queryFound
)
