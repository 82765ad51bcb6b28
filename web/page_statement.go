package web

// statementRoutes are those of templates/statement.html.
func (p *Portal) statementRoutes() []route { return nil }
