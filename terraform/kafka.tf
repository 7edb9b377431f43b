# Production alone. KRaft is chosen when a cluster is made and can't be switched on later.
resource "aws_security_group" "kafka" {
  count       = local.size.kafka == null ? 0 : 1
  name        = "${local.name}-kafka"
  description = "Kafka over TLS, from the cluster"
  vpc_id      = aws_vpc.this.id
  tags        = { Name = "${local.name}-kafka" }
}

# 9096: SASL_SSL with SCRAM; 9098: SASL_SSL with IAM.
resource "aws_vpc_security_group_ingress_rule" "kafka" {
  for_each                     = local.size.kafka == null ? {} : { scram = 9096, iam = 9098 }
  security_group_id            = aws_security_group.kafka[0].id
  referenced_security_group_id = aws_eks_cluster.this.vpc_config[0].cluster_security_group_id
  description                  = each.key
  ip_protocol                  = "tcp"
  from_port                    = each.value
  to_port                      = each.value
}

resource "aws_cloudwatch_log_group" "kafka" {
  count             = local.size.kafka == null ? 0 : 1
  name              = "/verdict/${var.environment}/kafka"
  retention_in_days = local.size.log_days
  kms_key_id        = aws_kms_key.data.arn
}

resource "aws_msk_configuration" "this" {
  count          = local.size.kafka == null ? 0 : 1
  name           = local.name
  kafka_versions = ["3.9.x.kraft"]
  # Topics are made on purpose, with their partitions and their retention.
  server_properties = <<-PROPERTIES
    auto.create.topics.enable=false
    default.replication.factor=3
    min.insync.replicas=2
    num.partitions=6
    unclean.leader.election.enable=false
    log.retention.hours=168
  PROPERTIES
}

resource "aws_msk_cluster" "this" {
  count                  = local.size.kafka == null ? 0 : 1
  cluster_name           = local.name
  kafka_version          = "3.9.x.kraft"
  number_of_broker_nodes = local.size.kafka.brokers
  enhanced_monitoring    = "PER_TOPIC_PER_BROKER"

  broker_node_group_info {
    instance_type   = local.size.kafka.type
    client_subnets  = aws_subnet.data[*].id
    security_groups = [aws_security_group.kafka[0].id]

    storage_info {
      ebs_storage_info {
        volume_size = local.size.kafka.disk_gib
      }
    }
  }

  configuration_info {
    arn      = aws_msk_configuration.this[0].arn
    revision = aws_msk_configuration.this[0].latest_revision
  }

  client_authentication {
    unauthenticated = false
    sasl {
      iam   = true
      scram = true
    }
  }

  encryption_info {
    encryption_at_rest_kms_key_arn = aws_kms_key.data.arn
    encryption_in_transit {
      client_broker = "TLS"
      in_cluster    = true
    }
  }

  logging_info {
    broker_logs {
      cloudwatch_logs {
        enabled   = true
        log_group = aws_cloudwatch_log_group.kafka[0].name
      }
    }
  }
}

resource "aws_msk_scram_secret_association" "this" {
  count           = local.size.kafka == null ? 0 : 1
  cluster_arn     = aws_msk_cluster.this[0].arn
  secret_arn_list = [aws_secretsmanager_secret.this["kafka-credentials"].arn]
}
