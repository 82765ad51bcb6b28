package web

// connectionRoutes are those of templates/connection.html.
func (p *Portal) connectionRoutes() []route { return nil }
