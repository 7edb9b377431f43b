# Entries without values: those are put in once, by hand (docs/deploy.md), so that none is ever in a state file.
locals {
  service_secret = {
    model-registry = "mlflow-credentials"
    predict        = "predict-credentials"
    rag            = "rag-credentials"
  }
  # MSK takes SCRAM users from entries whose name begins so, and only those.
  secrets = merge(
    { for name in ["mlflow-credentials", "predict-credentials", "rag-credentials", "ghcr-secret", "slack-webhook", "pagerduty-key"] : name => "${local.name}/${name}" },
    local.size.kafka == null ? {} : { kafka-credentials = "AmazonMSK_${local.name}-kafka-credentials" },
  )
  # PostgreSQL's users, whose passwords are changed by a function of AWS.
  rotated = toset(["mlflow-credentials", "predict-credentials"])
}

resource "aws_secretsmanager_secret" "this" {
  for_each                = local.secrets
  name                    = each.value
  kms_key_id              = aws_kms_key.data.arn
  recovery_window_in_days = local.size.secret_days
}

resource "aws_security_group" "rotation" {
  name        = "${local.name}-rotation"
  description = "The function that changes passwords in PostgreSQL"
  vpc_id      = aws_vpc.this.id
  tags        = { Name = "${local.name}-rotation" }
}

resource "aws_vpc_security_group_egress_rule" "rotation_database" {
  security_group_id            = aws_security_group.rotation.id
  referenced_security_group_id = aws_security_group.database.id
  description                  = "PostgreSQL"
  ip_protocol                  = "tcp"
  from_port                    = 5432
  to_port                      = 5432
}

resource "aws_vpc_security_group_egress_rule" "rotation_api" {
  security_group_id = aws_security_group.rotation.id
  cidr_ipv4         = "0.0.0.0/0"
  description       = "Secrets Manager"
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
}

# AWS's own rotation function. Two users take turns, so that the password which running pods hold stays good until the
# next rotation.
resource "aws_serverlessapplicationrepository_cloudformation_stack" "rotation" {
  name           = "${local.name}-rotation"
  application_id = "arn:aws:serverlessrepo:us-east-1:297356227824:applications/SecretsManagerRDSPostgreSQLRotationMultiUser"
  capabilities   = ["CAPABILITY_IAM", "CAPABILITY_RESOURCE_POLICY"]

  parameters = {
    functionName             = "${local.name}-rotation"
    endpoint                 = "https://secretsmanager.${var.region}.amazonaws.com"
    excludeCharacters        = " %+~`#$&*()|[]{}:;<>?!'/@\"\\"
    kmsKeyArn                = aws_kms_key.data.arn
    superuserSecretArn       = aws_db_instance.this.master_user_secret[0].secret_arn
    superuserSecretKmsKeyArn = aws_kms_key.data.arn
    vpcSubnetIds             = join(",", aws_subnet.private[*].id)
    vpcSecurityGroupIds      = aws_security_group.rotation.id
  }
}

resource "aws_secretsmanager_secret_rotation" "database" {
  for_each            = local.rotated
  secret_id           = aws_secretsmanager_secret.this[each.value].id
  rotation_lambda_arn = aws_serverlessapplicationrepository_cloudformation_stack.rotation.outputs["RotationLambdaARN"]
  # There is nothing to rotate before the first value was put in.
  rotate_immediately = false

  rotation_rules {
    automatically_after_days = 30
  }
}
